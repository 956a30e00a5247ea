_base_ = '../_base_/imagenet/384px_30e.py'

model = dict(backbone=dict(arch='dat-b++', drop_path_rate=0.6), head=dict(in_channels=1024))
load_from = 'checkpoints/dat-pp-base_in1k.pth'

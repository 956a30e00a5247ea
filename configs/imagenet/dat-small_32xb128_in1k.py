_base_ = '../_base_/imagenet/224px_300e.py'

model = dict(backbone=dict(arch='dat-s', drop_path_rate=0.3), head=dict(in_channels=768))

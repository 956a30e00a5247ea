_base_ = '../_base_/imagenet/224px_300e.py'

model = dict(backbone=dict(arch='dat-t', drop_path_rate=0.2), head=dict(in_channels=768))

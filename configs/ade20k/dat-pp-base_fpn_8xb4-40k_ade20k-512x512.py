_base_ = '../_base_/ade20k/fpn_40k.py'

model = dict(
    backbone=dict(
        arch='dat-b++',
        drop_path_rate=0.7,
        init_cfg=dict(checkpoint='checkpoints/dat-pp-base_in1k.pth'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

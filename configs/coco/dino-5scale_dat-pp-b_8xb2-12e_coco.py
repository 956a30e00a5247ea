_base_ = '../_base_/coco/dino.py'

model = dict(
    backbone=dict(
        arch='dat-b++',
        init_cfg=dict(checkpoint='checkpoints/dat-pp-base_in1k.pth'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

_base_ = '../_base_/ade20k/fpn_40k.py'

model = dict(
    backbone=dict(
        arch='dat-s++',
        init_cfg=dict(checkpoint='checkpoints/dat-pp-small_in1k.pth'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)

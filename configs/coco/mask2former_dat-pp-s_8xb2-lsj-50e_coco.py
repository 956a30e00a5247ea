_base_ = '../_base_/coco/mask2former.py'

model = dict(
    backbone=dict(
        arch='dat-s++',
        init_cfg=dict(checkpoint='checkpoints/dat-pp-small_in1k.pth'),
    ),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)

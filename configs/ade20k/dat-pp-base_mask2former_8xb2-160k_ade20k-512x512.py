_base_ = '../_base_/ade20k/mask2former_160k.py'

model = dict(
    backbone=dict(
        arch='dat-b++',
        init_cfg=dict(checkpoint='checkpoints/dat-pp-base_in1k.pth'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
)

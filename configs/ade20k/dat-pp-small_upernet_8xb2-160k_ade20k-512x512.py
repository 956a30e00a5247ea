_base_ = '../_base_/ade20k/upernet_160k.py'

model = dict(
    backbone=dict(
        arch='dat-s++',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='checkpoints/dat-pp-small_in1k.pth'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)

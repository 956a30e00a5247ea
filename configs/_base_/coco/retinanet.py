_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', './detection.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='DAT',
        arch='dat-t++',
        out_indices=(1, 2, 3),
        with_cp=True,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dat-pp-tiny_in1k.pth'),
    ),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)

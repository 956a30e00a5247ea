_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', './instance.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='DAT',
        arch='dat-t++',
        with_cp=True,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dat-pp-tiny_in1k.pth'),
    ),
    # The fifth level is a convolution of the backbone's last output, not a pooled fourth level.
    neck=dict(in_channels=[64, 128, 256, 512], add_extra_convs='on_input'),
)

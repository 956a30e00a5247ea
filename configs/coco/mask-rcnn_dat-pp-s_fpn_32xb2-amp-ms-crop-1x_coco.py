_base_ = ['../_base_/coco/mask-rcnn.py', '../_base_/coco/schedule_1x.py']

model = dict(
    backbone=dict(
        arch='dat-s++',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='checkpoints/dat-pp-small_in1k.pth'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')

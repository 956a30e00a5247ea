_base_ = [
    '../_base_/backbone/dat-pp-tiny.py',
    '../_base_/coco/mask-rcnn.py',
    '../_base_/coco/schedule_1x.py',
]

model = dict(
    backbone=dict(arch=_base_.dat.arch, init_cfg=_base_.dat.init_cfg),
    neck=dict(in_channels=_base_.dat.embed_dims),
)
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')

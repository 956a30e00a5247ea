_base_ = [
    '../_base_/backbone/dat-pp-tiny.py',
    '../_base_/coco/cascade-mask-rcnn.py',
    '../_base_/coco/schedule_3x.py',
]

model = dict(
    backbone=dict(arch=_base_.dat.arch, drop_path_rate=0.1, init_cfg=_base_.dat.init_cfg),
    neck=dict(in_channels=_base_.dat.embed_dims),
)
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')

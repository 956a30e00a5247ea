_base_ = ['../_base_/backbone/dat-pp-tiny.py', '../_base_/coco/mask2former.py']

model = dict(
    backbone=dict(arch=_base_.dat.arch, init_cfg=_base_.dat.init_cfg),
    panoptic_head=dict(in_channels=_base_.dat.embed_dims),
)

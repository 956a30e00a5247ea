_base_ = ['../_base_/backbone/dat-pp-tiny.py', '../_base_/coco/dino.py']

model = dict(
    backbone=dict(arch=_base_.arch, init_cfg=_base_.backbone_init),
    neck=dict(in_channels=_base_.embed_dims),
)

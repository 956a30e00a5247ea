_base_ = ['../_base_/backbone/dat-pp-base.py', '../_base_/ade20k/fpn_40k.py']

model = dict(
    backbone=dict(arch=_base_.arch, drop_path_rate=0.7, init_cfg=_base_.backbone_init),
    neck=dict(in_channels=_base_.embed_dims),
)

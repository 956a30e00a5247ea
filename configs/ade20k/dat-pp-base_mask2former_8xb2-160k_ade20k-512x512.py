_base_ = ['../_base_/backbone/dat-pp-base.py', '../_base_/ade20k/mask2former_160k.py']

model = dict(
    backbone=dict(arch=_base_.dat.arch, init_cfg=_base_.dat.init_cfg),
    decode_head=dict(in_channels=_base_.dat.embed_dims),
)

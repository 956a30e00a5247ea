_base_ = ['../_base_/backbone/dat-pp-tiny.py', '../_base_/ade20k/upernet_160k.py']

model = dict(
    backbone=dict(arch=_base_.dat.arch, drop_path_rate=0.3, init_cfg=_base_.dat.init_cfg),
    decode_head=dict(in_channels=_base_.dat.embed_dims),
    auxiliary_head=dict(in_channels=_base_.dat.embed_dims[2]),
)
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')

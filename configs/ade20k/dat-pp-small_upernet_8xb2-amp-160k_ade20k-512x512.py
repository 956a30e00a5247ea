_base_ = ['../_base_/backbone/dat-pp-small.py', '../_base_/ade20k/upernet_160k.py']

model = dict(
    backbone=dict(arch=_base_.arch, drop_path_rate=0.5, init_cfg=_base_.backbone_init),
    decode_head=dict(in_channels=_base_.embed_dims),
    auxiliary_head=dict(in_channels=_base_.embed_dims[2]),
)
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')

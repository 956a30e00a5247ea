_base_ = ['../_base_/backbone/dat-pp-base.py', '../_base_/imagenet/384px_30e.py']

model = dict(
    backbone=dict(arch=_base_.dat.arch, drop_path_rate=0.6),
    head=dict(in_channels=_base_.dat.embed_dims[-1]),
)
load_from = _base_.dat.init_cfg.checkpoint

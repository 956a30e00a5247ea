_base_ = ['../_base_/backbone/dat-small.py', '../_base_/imagenet/224px_300e.py']

model = dict(
    backbone=dict(arch=_base_.dat.arch, drop_path_rate=0.3),
    head=dict(in_channels=_base_.dat.embed_dims[-1]),
)

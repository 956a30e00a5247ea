_base_ = ['../_base_/backbone/dat-base.py', '../_base_/imagenet/384px_30e.py']

model = dict(
    backbone=dict(
        arch=dict(base=_base_.dat.arch, window_size=12, native_resolution=384), drop_path_rate=0.5
    ),
    head=dict(in_channels=_base_.dat.embed_dims[-1]),
)
load_from = _base_.dat.init_cfg.checkpoint

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(438, 438), backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-6 * 1536 / 512))
param_scheduler = [dict(type='CosineAnnealingLR', eta_min_ratio=0.05, convert_to_iter_based=True)]

_base_ = ['../_base_/backbone/dat-base.py', '../_base_/imagenet/224px_300e.py']

model = dict(
    backbone=dict(arch=_base_.dat.arch, drop_path_rate=0.5),
    head=dict(in_channels=_base_.dat.embed_dims[-1]),
)

optim_wrapper = dict(optimizer=dict(lr=4e-4 * 4096 / 512), clip_grad=dict(max_norm=1.0))
# The ends, 5e-7 and 5e-6 per 512 images, are those of the other recipes.
param_scheduler = [
    dict(type='LinearLR', start_factor=5e-7 / 4e-4, end=50, convert_to_iter_based=True),
    dict(
        type='LateCosineAnnealingLR',
        eta_min_ratio=5e-6 / 4e-4,
        begin=50,
        convert_to_iter_based=True,
    ),
]

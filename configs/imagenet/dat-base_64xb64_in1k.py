_base_ = '../_base_/imagenet/224px_300e.py'

model = dict(backbone=dict(arch='dat-b', drop_path_rate=0.5), head=dict(in_channels=1024))
train_dataloader = dict(batch_size=64)

optim_wrapper = dict(optimizer=dict(lr=4e-4 * 4096 / 512), clip_grad=dict(max_norm=1.0))
# From 5e-7 and to 5e-6 per 512 images, like the others.
param_scheduler = [
    dict(type='LinearLR', start_factor=5e-7 / 4e-4, end=50, convert_to_iter_based=True),
    dict(
        type='LateCosineAnnealingLR',
        eta_min_ratio=5e-6 / 4e-4,
        begin=50,
        convert_to_iter_based=True,
    ),
]

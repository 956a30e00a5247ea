_base_ = '../_base_/imagenet/384px_30e.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base='dat-b', window_size=12, native_resolution=384),
        drop_path_rate=0.5,
    ),
    head=dict(in_channels=1024),
)
load_from = 'checkpoints/dat-base_in1k.pth'

optim_wrapper = dict(optimizer=dict(lr=2e-6 * 1536 / 512))
param_scheduler = [dict(type='CosineAnnealingLR', eta_min_ratio=0.05, convert_to_iter_based=True)]

# UperNet, 8 GPUs x 2 images, 160k iterations.
_base_ = [
    *__import__('dat_pp').upstream(
        'mmseg::_base_/models/upernet_swin.py',
        'mmseg::_base_/schedules/schedule_160k.py',
        'mmseg::_base_/default_runtime.py',
    ),
    './dataset.py',
    './decay.py',
]
custom_imports = dict(imports=['dat_pp'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(_delete_=True, type='DAT', with_cp=True),
    decode_head=dict(type='Float32Head', base='UPerHead', num_classes=150),
    auxiliary_head=dict(type='Float32Head', base='FCNHead', num_classes=150),
)
train_dataloader = dict(batch_size=2)

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=_base_.custom_keys),
)
# The polynomial decay starts at the first iteration; the warm-up multiplies it.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=0, end=160000, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)

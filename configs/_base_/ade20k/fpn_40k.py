# Semantic FPN, 8 GPUs x 4 images, 40k iterations.
_base_ = [
    *__import__('dat_pp').upstream(
        'mmseg::_base_/models/fpn_r50.py',
        'mmseg::_base_/schedules/schedule_40k.py',
        'mmseg::_base_/default_runtime.py',
    ),
    './dataset.py',
    './decay.py',
]
custom_imports = dict(imports=['dat_pp'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    pretrained=None,
    backbone=dict(_delete_=True, type='DAT'),
    decode_head=dict(num_classes=150),
)

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=_base_.custom_keys),
)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=40000, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=32)

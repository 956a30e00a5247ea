# Ours, after mmseg's recipe for Swin; DAT++ was never published with Mask2Former.
_base_ = [
    *__import__('dat_pp').upstream(
        'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'
    ),
    '../mask2former_decay.py',
]
custom_imports = dict(imports=['dat_pp', 'mmdet.models'])

model = dict(backbone=dict(_delete_=True, type='DAT', drop_path_rate=0.3))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.custom_keys))

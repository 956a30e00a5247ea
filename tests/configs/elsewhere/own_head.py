_base_ = __import__('dat_pp').config('dat-pp-tiny_fpn_8xb4-40k_ade20k-512x512')
custom_imports = dict(imports=['own_modules.head'])
model = dict(
    neck=None,
    decode_head=dict(
        _delete_=True,
        type='LastLevelHead',
        in_channels=512,
        in_index=3,
        channels=512,
        num_classes=150,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
)

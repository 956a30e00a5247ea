_base_ = ['mmpretrain::_base_/default_runtime.py', './_base_/dat.py']

model = dict(
    type='ImageClassifier',
    _scope_='mmpretrain',  # as in models from mmdet:: and mmseg:: bases: builds in any scope
    data_preprocessor=dict(
        num_classes=10, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
    ),
    backbone=dict(
        type='DAT',
        arch=_base_.arch,
        out_indices=(3,),
        # DAT's own initialization needs ImageNet's hundreds of epochs.
        init_cfg=dict(type='Kaiming', layer='Conv2d', mode='fan_in', nonlinearity='linear'),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=_base_.arch.embed_dims[-1],
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1,),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=48, crop_ratio_range=(0.7, 1.0)),
    dict(type='Rotate', angle=10.0, prob=0.5, pad_val=(0, 0, 0)),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='CenterCrop', crop_size=44),
    dict(type='Resize', scale=48),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='data/digits/imagenet',
        data_prefix='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root='data/digits/imagenet',
        data_prefix='val',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

max_epochs = 10
optim_wrapper = dict(optimizer=dict(lr=3e-3))
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=1,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
)
randomness = dict(seed=0)

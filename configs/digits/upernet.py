_base_ = [
    *__import__('dat_pp').upstream(
        'mmseg::_base_/models/upernet_r50.py',
        'mmseg::_base_/datasets/ade20k.py',
        'mmseg::_base_/default_runtime.py',
    ),
    './_base_/dat.py',
]

# Weights of the classifier, as the demo leaves them; None for a random start.
pretrained = 'work_dirs/digits/classification.pth'
classes = ('background', *'0123456789')
norm_cfg = dict(type='BN', requires_grad=True)  # one process: nothing to synchronise
# mmseg's own deviation of 0.01 keeps the classes apart from background equal for too long.
classifier_init = dict(type='Normal', std=0.15, override=dict(name='conv_seg'))

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(
        _delete_=True,
        type='DAT',
        arch=_base_.arch,
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    decode_head=dict(
        in_channels=_base_.arch.embed_dims,
        channels=48,
        num_classes=11,
        norm_cfg=norm_cfg,
        init_cfg=classifier_init,
    ),
    auxiliary_head=dict(
        in_channels=_base_.arch.embed_dims[2],
        channels=32,
        num_classes=11,
        norm_cfg=norm_cfg,
        init_cfg=classifier_init,
    ),
)

dataset = dict(
    type='BaseSegDataset', data_root='data/digits/ade20k', metainfo=dict(classes=classes)
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = train_pipeline
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(**dataset, pipeline=test_pipeline),
)
test_dataloader = val_dataloader

log_processor = dict(by_epoch=True)
max_epochs = 5
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    visualization=dict(type='SegVisualizationHook'),
)
randomness = dict(seed=0)

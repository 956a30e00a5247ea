_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/default_runtime.py',
    './_base_/dat.py',
]

# Weights of the classifier, as the demo leaves them; None for a random start.
pretrained = 'work_dirs/digits/classification.pth'
channels = 48
norm_cfg = dict(type='BN')  # heads that start from nothing learn faster with it

model = dict(
    backbone=dict(
        _delete_=True,
        type='DAT',
        arch=_base_.arch,
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    neck=dict(
        in_channels=_base_.arch.embed_dims, out_channels=channels, num_outs=4, norm_cfg=norm_cfg
    ),
    rpn_head=dict(
        type='Float32Head',
        base='RPNHead',
        in_channels=channels,
        feat_channels=channels,
        # Digits are 16 to 64 pixels high, and rarely wider than high.
        anchor_generator=dict(scales=[5], ratios=[1.0, 2.0], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        # Levels for digits instead of COCO's objects; few samples a bin, which is most of the cost.
        bbox_roi_extractor=dict(
            type='Float32RoIExtractor',
            out_channels=channels,
            finest_scale=16,
            roi_layer=dict(sampling_ratio=1),
        ),
        bbox_head=dict(
            type='Float32Head',
            base='Shared2FCBBoxHead',
            in_channels=channels,
            fc_out_channels=256,
            num_classes=10,
        ),
        mask_roi_extractor=dict(
            type='Float32RoIExtractor', out_channels=channels, roi_layer=dict(sampling_ratio=1)
        ),
        mask_head=dict(
            type='Float32Head',
            base='FCNMaskHead',
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=10,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=48),
        rcnn=dict(sampler=dict(num=20, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=60), rcnn=dict(max_per_img=20)),
)

dataset_type = 'CocoDataset'
data_root = 'data/digits/coco/'
metainfo = dict(classes=tuple('0123456789'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

max_epochs = 3
optim_wrapper = dict(optimizer=dict(lr=1e-3))
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
    logger=dict(interval=20), checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
)
randomness = dict(seed=0)

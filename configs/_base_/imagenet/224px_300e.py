# ImageNet-1K from scratch at 224 x 224: total batch 4096, 300 epochs of which 20 are warm-up.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['dat_pp'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    _scope_='mmpretrain',  # as in models from mmdet:: and mmseg:: bases: builds in any scope
    backbone=dict(type='DAT', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        init_cfg=None,  # as published: PyTorch's default initialization
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        cal_acc=False,
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 256), backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, drop_last=True)  # 312 iterations per epoch
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(lr=5e-4 * 4096 / 512),
    # Position biases of deformable and window attention do not decay, those of neighborhoods do.
    paramwise_cfg=dict(custom_keys={'.rpe_table': dict(decay_mult=0.0)}),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(type='LateCosineAnnealingLR', eta_min_ratio=0.01, begin=20, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=4096)
# seed + rank in each process, so that mixup, cutmix and stochastic depth differ between GPUs.
randomness = dict(seed=0, diff_rank_seed=True)
# mmpretrain's browse_dataset.py hands these keys to the class as they are: no `_scope_` among them.
visualizer = dict(
    _delete_=True, type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)

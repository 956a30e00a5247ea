# Fine-tuning at 384 x 384 from the weights at 224: 30 epochs, no warm-up, next to no weight decay.
_base_ = './224px_300e.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].update(scale=384)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
# The number of GPUs is not published; 64 as at 224. Learning rates are per 512 images.
train_dataloader = dict(batch_size=24, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-5 * 1536 / 512, weight_decay=1e-8))
param_scheduler = [dict(type='CosineAnnealingLR', eta_min_ratio=0.01, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=1536)

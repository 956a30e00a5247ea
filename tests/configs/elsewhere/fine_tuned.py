_base_ = __import__('dat_pp').config('dat-pp-tiny_32xb128_in1k')
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='classifier.pth')),
    head=dict(num_classes=3),
    train_cfg=None,
)
data_preprocessor = dict(num_classes=3)
train_dataloader = dict(
    batch_size=2,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/flowers',
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(64, 64)),
            dict(type='PackInputs'),
        ],
    ),
)

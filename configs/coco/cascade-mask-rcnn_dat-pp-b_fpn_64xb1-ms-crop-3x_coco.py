_base_ = ['../_base_/coco/cascade-mask-rcnn.py', '../_base_/coco/schedule_3x.py']

model = dict(
    backbone=dict(
        arch='dat-b++',
        drop_path_rate=0.8,
        init_cfg=dict(checkpoint='checkpoints/dat-pp-base_in1k.pth'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
train_dataloader = dict(batch_size=1)

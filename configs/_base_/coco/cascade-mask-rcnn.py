_base_ = ['mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', './instance.py']

model = dict(
    backbone=dict(_delete_=True, type='DAT', with_cp=True),
    rpn_head=dict(type='Float32Head', base='RPNHead'),
    roi_head=dict(
        bbox_roi_extractor=dict(type='Float32RoIExtractor'),
        bbox_head=[
            dict(
                type='Float32Head',
                base='Shared4Conv1FCBBoxHead',
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=stds),
                reg_decoded_bbox=True,
                norm_cfg=dict(type='SyncBN', requires_grad=True),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
            )
            for stds in (
                [0.1, 0.1, 0.2, 0.2],
                [0.05, 0.05, 0.1, 0.1],
                [0.033, 0.033, 0.067, 0.067],
            )
        ],
        mask_roi_extractor=dict(type='Float32RoIExtractor'),
        mask_head=dict(type='Float32Head', base='FCNMaskHead'),
    ),
)

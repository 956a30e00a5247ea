_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', './instance.py']

model = dict(
    backbone=dict(_delete_=True, type='DAT', with_cp=True),
    # The fifth level is a convolution of the backbone's last output, not a pooled fourth level.
    neck=dict(add_extra_convs='on_input'),
    rpn_head=dict(type='Float32Head', base='RPNHead'),
    roi_head=dict(
        bbox_roi_extractor=dict(type='Float32RoIExtractor'),
        bbox_head=dict(type='Float32Head', base='Shared2FCBBoxHead'),
        mask_roi_extractor=dict(type='Float32RoIExtractor'),
        mask_head=dict(type='Float32Head', base='FCNMaskHead'),
    ),
)

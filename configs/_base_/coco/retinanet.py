_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', './detection.py']

model = dict(
    backbone=dict(_delete_=True, type='DAT', out_indices=(1, 2, 3), with_cp=True),
    neck=dict(start_level=0),
    bbox_head=dict(type='Float32Head', base='RetinaHead'),
)

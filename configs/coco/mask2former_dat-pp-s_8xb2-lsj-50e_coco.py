_base_ = ['../_base_/backbone/dat-pp-small.py', '../_base_/coco/mask2former.py']

model = dict(
    backbone=dict(arch=_base_.arch, init_cfg=_base_.backbone_init),
    panoptic_head=dict(in_channels=_base_.embed_dims),
)

_base_ = ['../_base_/coco/mask-rcnn.py', '../_base_/coco/schedule_3x.py']

model = dict(backbone=dict(drop_path_rate=0.3))
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')

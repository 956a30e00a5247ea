_base_ = ['../_base_/coco/retinanet.py', '../_base_/coco/schedule_3x.py']

model = dict(backbone=dict(drop_path_rate=0.2))
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict(lr=2e-4))

_base_ = ['../_base_/coco/retinanet.py', '../_base_/coco/schedule_1x.py']

optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict(lr=2e-4))

_base_ = ['../_base_/coco/cascade-mask-rcnn.py', '../_base_/coco/schedule_1x.py']

optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')

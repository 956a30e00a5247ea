_base_ = './fine_tuned.py'
model = dict(backbone=dict(init_cfg=None))
load_from = 'classifier.pth'

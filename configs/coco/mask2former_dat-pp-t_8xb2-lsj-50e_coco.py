_base_ = '../_base_/coco/mask2former.py'

_base_ = '../_base_/coco/dino.py'

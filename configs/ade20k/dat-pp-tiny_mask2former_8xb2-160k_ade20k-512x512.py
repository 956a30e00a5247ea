_base_ = '../_base_/ade20k/mask2former_160k.py'

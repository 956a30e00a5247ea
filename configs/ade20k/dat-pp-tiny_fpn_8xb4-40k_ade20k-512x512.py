_base_ = '../_base_/ade20k/fpn_40k.py'

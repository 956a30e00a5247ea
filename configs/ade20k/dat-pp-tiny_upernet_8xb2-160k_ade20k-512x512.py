_base_ = '../_base_/ade20k/upernet_160k.py'

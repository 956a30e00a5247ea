_base_ = '../_base_/imagenet/224px_300e.py'

_base_ = '../_base_/imagenet/224px_300e.py'

model = dict(backbone=dict(arch='dat-b++', drop_path_rate=0.7), head=dict(in_channels=1024))
train_dataloader = dict(batch_size=64)

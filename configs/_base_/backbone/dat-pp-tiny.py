# DAT-T++: what recipes and detectors need to know of it.
arch = 'dat-t++'
embed_dims = [64, 128, 256, 512]  # channels of the four feature maps, at strides 4, 8, 16 and 32
backbone_init = dict(type='Pretrained', checkpoint='checkpoints/dat-pp-tiny_in1k.pth')

# DAT-T of 2022: what recipes and detectors need to know of it.
arch = 'dat-t'
embed_dims = [96, 192, 384, 768]  # channels of the four feature maps, at strides 4, 8, 16 and 32
backbone_init = dict(type='Pretrained', checkpoint='checkpoints/dat-tiny_in1k.pth')

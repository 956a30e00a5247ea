# DAT-B++: what recipes and detectors need to know of it.
arch = 'dat-b++'
embed_dims = [128, 256, 512, 1024]  # channels of the four feature maps, at strides 4, 8, 16 and 32
backbone_init = dict(type='Pretrained', checkpoint='checkpoints/dat-pp-base_in1k.pth')

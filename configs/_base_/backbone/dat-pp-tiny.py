# DAT-T++: architecture, channels of the four feature maps, and where its weights are expected.
dat = dict(
    arch='dat-t++',
    embed_dims=[64, 128, 256, 512],
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dat-pp-tiny_in1k.pth'),
)

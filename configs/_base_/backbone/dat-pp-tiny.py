# DAT-T++: architecture, channels of the four feature maps, where its weights are.
dat = dict(
    arch='dat-t++',
    embed_dims=[64, 128, 256, 512],
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dat-pp-tiny_in1k.pth'),
)

# DAT-S++: architecture, channels of the four feature maps, and where its weights are expected.
dat = dict(
    arch='dat-s++',
    embed_dims=[96, 192, 384, 768],
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dat-pp-small_in1k.pth'),
)

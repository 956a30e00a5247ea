# DAT-S++: architecture, channels of the four feature maps, where its weights are.
dat = dict(
    arch='dat-s++',
    embed_dims=[96, 192, 384, 768],
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dat-pp-small_in1k.pth'),
)

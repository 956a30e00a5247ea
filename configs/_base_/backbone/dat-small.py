# DAT-S of 2022: architecture, channels of the four feature maps, where its weights are.
dat = dict(
    arch='dat-s',
    embed_dims=[96, 192, 384, 768],
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dat-small_in1k.pth'),
)

# DAT-T of 2022: architecture, channels of the four feature maps, and where its weights are expected.
dat = dict(
    arch='dat-t',
    embed_dims=[96, 192, 384, 768],
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dat-tiny_in1k.pth'),
)

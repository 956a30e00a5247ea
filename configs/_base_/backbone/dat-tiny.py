# DAT-T of 2022: architecture, channels of the four feature maps, where its weights are.
dat = dict(
    arch='dat-t',
    embed_dims=[96, 192, 384, 768],
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dat-tiny_in1k.pth'),
)

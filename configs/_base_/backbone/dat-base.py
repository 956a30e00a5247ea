# DAT-B of 2022: architecture, channels of the four feature maps, where its weights are.
dat = dict(
    arch='dat-b',
    embed_dims=[128, 256, 512, 1024],
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dat-base_in1k.pth'),
)

# What the three digits configs share: the backbone and the optimizer, except its learning rate.
custom_imports = dict(imports=['dat_pp'], allow_failed_imports=False)

# A small DAT++ for images of about 100 x 100 pixels, with strides 4, 8, 16 and 32.
arch = dict(
    embed_dims=[16, 32, 96, 192],
    mixers=['N', 'D', 'NDND', 'D'],
    num_heads=[1, 2, 4, 8],
    offset_groups=[1, 1, 2, 4],
    offset_strides=[4, 1, 1, 1],  # dense grids: the maps are small
    native_resolution=64,
)

optim_wrapper = dict(
    optimizer=dict(type='AdamW', weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)

val_cfg = dict()
test_cfg = dict()

# Mask2Former's recipe for Swin, with the parameter names of DAT: a tenth of the learning rate for
# the backbone, no weight decay for norms, position biases and embeddings.
backbone_norm = dict(lr_mult=0.1, decay_mult=0.0)
embedding = dict(lr_mult=1.0, decay_mult=0.0)
custom_keys = {
    'backbone': dict(lr_mult=0.1, decay_mult=1.0),
    'query_embed': embedding,
    'query_feat': embedding,
    'level_embed': embedding,
    # The longest key that a name contains applies.
    **{f'backbone.{part}norm': backbone_norm for part in ('', 'stem.')},
    **{f'backbone.downsamples.{i}.norm': backbone_norm for i in range(3)},
    **{
        f'backbone.stages.{i}.{j}.{part}': backbone_norm
        for i, depth in enumerate([2, 4, 18, 2])
        for j in range(depth)
        for part in ('norm', 'mixer.conv_offset.norm', 'mixer.rpe_table')
    },
}

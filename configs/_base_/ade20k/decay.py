# As published, the norms of the backbone do not decay; the batch norms of the heads (`bn`) do.
custom_keys = {
    'norm': dict(decay_mult=0.0),
    'rpe_table': dict(decay_mult=0.0),
    'relative_position_bias_table': dict(decay_mult=0.0),
}

"""Architectures that run in milliseconds and still have every part of the published ones."""

import torch
from mmengine.registry import MODELS

from dat_pp import DAT

TINY = dict(
    embed_dims=[16, 16, 32, 32],
    mixers=['ND', 'ND', 'ND', 'DD'],
    num_heads=[1, 2, 2, 4],
    offset_groups=[1, 1, 2, 2],
    native_resolution=64,
)
ALL_MIXERS = dict(TINY, mixers=['NDX', 'LSP', 'PLSD', 'XDN'])
V1 = dict(
    TINY,
    mixers=['LS', 'LS', 'LD', 'LD'],
    offset_strides=1,
    offset_range=2,
    lpu=False,
    conv_ffn=False,
    overlapped=False,
    coordinates='dat',
)


def build(arch: dict | str = TINY, **kwargs: object) -> DAT:
    """A seeded backbone in evaluation mode, built through mmengine's registry."""
    torch.manual_seed(0)
    return MODELS.build(dict(type='DAT', arch=arch, **kwargs)).eval()

"""Token mixers, (B, C, H, W) -> (B, C, H, W), and the table of their letters in ``arch.mixers``.

A mixer is a file in this folder and a row of :data:`MIXERS`. It owns its parameters and calls one
function of :mod:`dat_pp.ops`. Its constructor takes the dropout rates ``attn_drop`` and ``drop``
and what its static method ``settings`` takes from an ``arch`` for a stage; ``settings`` raises
ValueError if the values do not fit.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from .deformable import DeformableAttention
from .depthwise import DepthwiseConv
from .neighborhood import NeighborhoodAttention
from .spatial_reduction import SpatialReductionAttention
from .window import ShiftedWindowAttention, WindowAttention

if TYPE_CHECKING:
    from ..arch import Arch


class Mixer(NamedTuple):
    """A row of :data:`MIXERS`."""

    module: type[Any]
    description: str
    residual: bool = True
    """Whether mixer and FFN have a norm and a residual each; else they share one (ConvNeXt)."""


MIXERS = {
    'D': Mixer(DeformableAttention, 'deformable attention'),
    'N': Mixer(NeighborhoodAttention, 'neighborhood attention'),
    'L': Mixer(WindowAttention, 'local window attention'),
    'S': Mixer(ShiftedWindowAttention, 'shifted window attention'),
    'P': Mixer(SpatialReductionAttention, 'spatial-reduction attention'),
    'X': Mixer(DepthwiseConv, 'depthwise convolution', residual=False),
}
"""The token mixers by their letter in ``arch['mixers']``."""


def check_mixers(arch: 'Arch', stage: int) -> None:
    """Raise ValueError unless every letter of a stage is in the table and its settings fit."""
    word = arch.mixers[stage]
    if not isinstance(word, str) or not word or set(word) - MIXERS.keys():
        choices = ', '.join(f'{letter} ({mixer.description})' for letter, mixer in MIXERS.items())
        raise ValueError(
            f'arch mixers in stage {stage} must be a word of the letters {choices}; got {word!r}'
        )
    for letter in dict.fromkeys(word):
        MIXERS[letter].module.settings(arch, stage)


def build_mixer(letter: str, arch: 'Arch', stage: int, drop: float, attn_drop: float) -> nn.Module:
    """Build the mixer of ``letter`` for a stage of ``arch``."""
    module = MIXERS[letter].module
    return module(**module.settings(arch, stage), drop=drop, attn_drop=attn_drop)


__all__ = [
    'MIXERS',
    'DeformableAttention',
    'DepthwiseConv',
    'Mixer',
    'NeighborhoodAttention',
    'ShiftedWindowAttention',
    'SpatialReductionAttention',
    'WindowAttention',
    'build_mixer',
    'check_mixers',
]

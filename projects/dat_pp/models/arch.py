"""The published variants, and the check of an ``arch``."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from .mixers.deformable import COORDINATES, POSITION_BIASES

NUM_STAGES = 4
MIXERS = {
    'D': 'deformable attention',
    'N': 'neighborhood attention',
    'L': 'local window attention',
    'S': 'shifted window attention',
    'P': 'spatial-reduction attention',
    'X': 'depthwise convolution',
}

# What DAT++ uses; an `arch` states only what differs.
DEFAULTS = dict(
    # A list of four values, one a stage, or one value for all stages.
    embed_dims=None,
    mixers=None,
    num_heads=None,
    offset_groups=1,
    offset_strides=[8, 4, 2, 1],
    offset_kernel_sizes=[9, 7, 5, 3],
    offset_range=-1,
    use_offset=True,
    position_bias='table',
    neighborhood_kernel_size=7,
    window_size=7,
    spatial_reduction_ratios=[8, 4, 2, 1],
    lpu=True,
    conv_ffn=True,
    ffn_ratio=4,
    layer_scale_init_value=0.0,
    # One value for the network.
    overlapped=True,
    coordinates='dat++',
    native_resolution=224,
)
REQUIRED = ('embed_dims', 'mixers', 'num_heads')
WHOLE_NETWORK = ('overlapped', 'coordinates', 'native_resolution')

_DAT = dict(
    embed_dims=[96, 192, 384, 768],
    num_heads=[3, 6, 12, 24],
    offset_groups=[1, 1, 3, 6],
    offset_strides=1,
    offset_range=2,
    lpu=False,
    conv_ffn=False,
    overlapped=False,
    coordinates='dat',
)
_DAT_PP_MIXERS = ['ND', 'NDND', 'ND' * 9, 'DD']

ARCH_SETTINGS = {
    'dat-t': dict(_DAT, mixers=['LS', 'LS', 'LD' * 3, 'LD']),
    'dat-s': dict(_DAT, mixers=['LS', 'LS', 'LD' * 9, 'LD']),
    'dat-b': dict(
        _DAT,
        mixers=['LS', 'LS', 'LD' * 9, 'LD'],
        embed_dims=[128, 256, 512, 1024],
        num_heads=[4, 8, 16, 32],
        offset_groups=[1, 1, 4, 8],
    ),
    'dat-t++': dict(
        mixers=_DAT_PP_MIXERS,
        embed_dims=[64, 128, 256, 512],
        num_heads=[2, 4, 8, 16],
        offset_groups=[1, 2, 4, 8],
    ),
    'dat-s++': dict(
        mixers=_DAT_PP_MIXERS,
        embed_dims=[96, 192, 384, 768],
        num_heads=[3, 6, 12, 24],
        offset_groups=[1, 2, 3, 6],
    ),
    'dat-b++': dict(
        mixers=_DAT_PP_MIXERS,
        embed_dims=[128, 256, 512, 1024],
        num_heads=[4, 8, 16, 32],
        offset_groups=[2, 4, 8, 16],
    ),
}


def resolve_arch(arch: str | dict) -> SimpleNamespace:
    """Complete and check an ``arch``.

    Args:
        arch: A name of ``ARCH_SETTINGS``, or a dict with keys of ``DEFAULTS``. The dict's key
            ``base`` may name a published variant that the other keys change; without it,
            ``embed_dims``, ``mixers`` and ``num_heads`` are required.

    Returns:
        Every key of ``DEFAULTS`` as an attribute, per-stage values as lists of four.

    Raises:
        ValueError: Unknown name or key, missing key, wrong length, or values that do not fit.
    """
    if isinstance(arch, str):
        arch = {'base': arch}
    if not isinstance(arch, dict):
        raise ValueError(f'arch must be a name or a dict, got {type(arch).__name__}')
    arch = dict(arch)
    base = arch.pop('base', None)
    if base is not None and base not in ARCH_SETTINGS:
        raise ValueError(f'unknown arch {base!r}; choose one of {_listed(ARCH_SETTINGS)}')
    unknown = arch.keys() - DEFAULTS.keys()
    if unknown:
        raise ValueError(f'unknown arch key {_listed(unknown)}; the keys are {_listed(DEFAULTS)}')
    values = {**DEFAULTS, **ARCH_SETTINGS.get(base, {}), **arch}
    missing = [key for key in REQUIRED if values[key] is None]
    if missing:
        raise ValueError(f'arch needs {_listed(missing)} (or a base to take them from)')

    for key in DEFAULTS.keys() - set(WHOLE_NETWORK):
        values[key] = _per_stage(key, values[key])
    resolution = values['native_resolution']
    if not isinstance(resolution, Sequence):
        resolution = (resolution, resolution)
    values['native_resolution'] = tuple(resolution)
    resolved = SimpleNamespace(**values)
    _check_values(resolved)
    for stage in range(NUM_STAGES):
        _check_stage(resolved, stage)
    return resolved


def _listed(names: Sequence[str]) -> str:
    return ', '.join(repr(name) for name in names)


def _per_stage(key: str, value: Any) -> list:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * NUM_STAGES
    if len(value) != NUM_STAGES:
        raise ValueError(
            f'arch {key} must be one value or {NUM_STAGES}, one a stage; got {len(value)}: {value}'
        )
    return list(value)


def _check_values(arch: SimpleNamespace) -> None:
    """Types and choices, whatever the mixers."""
    for key in ('embed_dims', 'num_heads', 'offset_groups', 'offset_strides', 'ffn_ratio',
                'offset_kernel_sizes', 'neighborhood_kernel_size', 'window_size',
                'spatial_reduction_ratios', 'native_resolution'):  # fmt: skip
        for value in getattr(arch, key):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'arch {key} must be positive integers, got {value!r}')
    for key in ('offset_range', 'layer_scale_init_value'):
        for value in getattr(arch, key):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f'arch {key} must be numbers, got {value!r}')
    for key in ('use_offset', 'lpu', 'conv_ffn'):
        for value in getattr(arch, key):
            if not isinstance(value, bool):
                raise ValueError(f'arch {key} must be True or False, got {value!r}')
    if not isinstance(arch.overlapped, bool):
        raise ValueError(f'arch overlapped must be True or False, got {arch.overlapped!r}')
    if len(arch.native_resolution) != 2:
        raise ValueError(
            f'arch native_resolution must be one size or (height, width), '
            f'got {arch.native_resolution}'
        )
    if arch.coordinates not in COORDINATES:
        raise ValueError(
            f'arch coordinates {arch.coordinates!r} unknown; choose one of {_listed(COORDINATES)}'
        )
    for value in arch.position_bias:
        if value not in POSITION_BIASES:
            raise ValueError(
                f'arch position_bias {value!r} unknown; choose one of {_listed(POSITION_BIASES)}'
            )
    if arch.overlapped and arch.embed_dims[0] % 2:
        raise ValueError(f'an overlapped stem needs an even width, got {arch.embed_dims[0]}')


def _check_stage(arch: SimpleNamespace, stage: int) -> None:
    """Values that must fit each other within one stage."""
    mixers, where = arch.mixers[stage], f'in stage {stage}'
    if not isinstance(mixers, str) or not mixers or set(mixers) - MIXERS.keys():
        choices = ', '.join(f'{letter} ({name})' for letter, name in MIXERS.items())
        raise ValueError(
            f'arch mixers {where} must be a word of the letters {choices}; got {mixers!r}'
        )
    channels, heads, groups = (
        arch.embed_dims[stage],
        arch.num_heads[stage],
        arch.offset_groups[stage],
    )
    if channels % heads:
        raise ValueError(f'num_heads {heads} do not divide embed_dims {channels} {where}')
    if 'D' in mixers:
        if heads % groups:
            raise ValueError(f'offset_groups {groups} do not divide num_heads {heads} {where}')
        kernel, stride = arch.offset_kernel_sizes[stage], arch.offset_strides[stage]
        if kernel < stride or (kernel % 2 == 0 and kernel != stride):
            raise ValueError(
                f'offset_kernel_sizes {kernel} {where} must be odd and no less than the stride '
                f'{stride}, or equal to it'
            )
    if 'N' in mixers and arch.neighborhood_kernel_size[stage] % 2 == 0:
        raise ValueError(
            f'neighborhood_kernel_size {arch.neighborhood_kernel_size[stage]} {where} must be odd'
        )
    if 'S' in mixers and arch.window_size[stage] < 2:
        raise ValueError(f'window_size 1 {where} cannot be shifted (mixer S)')
    if 'X' in mixers and arch.window_size[stage] % 2 == 0:
        raise ValueError(
            f'window_size {arch.window_size[stage]} {where} must be odd to be the kernel of mixer X'
        )

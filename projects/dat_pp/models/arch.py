"""Settings of a backbone, and those of the published variants of DAT and DAT++."""

# ruff: noqa: RUF009  `_per_stage` makes a dataclass field

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from .mixers import check_mixers
from .mixers.deformable import Coordinates, PositionBias

NUM_STAGES = 4

T = TypeVar('T')
PerStage = list[T]
"""Four values, one per stage; a single value is given to all stages."""


def _per_stage(*values: Any) -> Any:
    """Default of a setting: one value for all stages, or four."""
    return field(default_factory=lambda: list(values) * (NUM_STAGES // len(values)))


@dataclass(frozen=True)
class Arch:
    """Settings of a DAT backbone; the defaults are those of DAT++ (arXiv 2309.01430).

    A setting typed ``PerStage`` is given as one value for all stages or as a sequence of four, and
    stored as a list of four. The settings of the published variants are in ``ARCH_SETTINGS``.

    Raises:
        ValueError: A value is of the wrong type or length, or values do not fit each other.
    """

    embed_dims: PerStage[int]
    """Channels of the feature map."""

    mixers: PerStage[str]
    """A word with one letter per block, its token mixer; the letters are in
    :data:`dat_pp.models.mixers.MIXERS`. Its length is the stage's depth."""

    num_heads: PerStage[int]
    """Attention heads; divides ``embed_dims``."""

    offset_groups: PerStage[int] = _per_stage(1)
    """Mixer D: groups of channels that are sampled at positions of their own; divides
    ``num_heads`` (DAT, section 3.2)."""

    offset_strides: PerStage[int] = _per_stage(8, 4, 2, 1)
    """Mixer D: stride r of the grid of reference points (DAT, section 3.2)."""

    offset_kernel_sizes: PerStage[int] = _per_stage(9, 7, 5, 3)
    """Mixer D: kernel of the offset network's depthwise convolution; odd and no less than the
    stride, or equal to it (DAT, section 3.2)."""

    offset_range: PerStage[float] = _per_stage(-1)
    """Mixer D: bound of the offsets in half steps of the grid. Negative: offsets are not bounded,
    and positions are clamped to the feature map."""

    use_offset: PerStage[bool] = _per_stage(True)
    """Mixer D: whether to sample at learned positions; else keys and values are average-pooled
    and there is no position bias (an ablation)."""

    position_bias: PerStage[PositionBias] = _per_stage('table')
    """Mixer D: ``'table'`` is the deformable relative position bias (DAT, section 3.2),
    ``'none'``, ``'dwconv'``, ``'fixed'`` and ``'log_cpb'`` its ablations."""

    neighborhood_kernel_size: PerStage[int] = _per_stage(7)
    """Mixer N: odd side of the neighborhood (DAT++, section 3.3)."""

    window_size: PerStage[int] = _per_stage(7)
    """Mixers L, S: side of a window. Mixer X: odd kernel of the depthwise convolution."""

    spatial_reduction_ratios: PerStage[int] = _per_stage(8, 4, 2, 1)
    """Mixer P: by how much keys and values are reduced per axis."""

    lpu: PerStage[bool] = _per_stage(True)
    """Whether a block begins with a local perception unit, a residual depthwise convolution
    (DAT++, section 3.4)."""

    conv_ffn: PerStage[bool] = _per_stage(True)
    """Whether the FFN has a residual depthwise convolution (DAT++, section 3.4)."""

    ffn_ratio: PerStage[int] = _per_stage(4)
    """Hidden channels of the FFN per channel of the feature map."""

    layer_scale_init_value: PerStage[float] = _per_stage(0.0)
    """Initial value of LayerScale; there is none at 0 or below."""

    overlapped: bool = True
    """Whether patch embedding and downsampling are overlapped 3 x 3 convolutions (DAT++, section
    3.4); else patches are disjoint."""

    coordinates: Coordinates = 'dat++'
    """Mixer D: how positions are normalized, as the code of DAT++ or of DAT does."""

    native_resolution: tuple[int, int] = (224, 224)
    """Height and width, or one size for both, of the images that position bias tables are made
    for. Images of other sizes use the same tables."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Arch).items():
            value = getattr(self, name)
            if get_origin(hint) is list:
                value = _check_sequence(name, value, NUM_STAGES, 'one value or 4, one per stage')
            elif get_origin(hint) is tuple:
                value = tuple(_check_sequence(name, value, 2, 'one size or (height, width)'))
            object.__setattr__(self, name, value)  # the instance is frozen for others
            if isinstance(value, list | tuple):
                for item in value:
                    _check_value(name, item, get_args(hint)[0])
            else:
                _check_value(name, value, hint)
        if self.overlapped and self.embed_dims[0] % 2:
            raise ValueError(
                f'an overlapped stem needs an even number of channels, got {self.embed_dims[0]}'
            )
        for stage in range(NUM_STAGES):
            check_mixers(self, stage)
            channels, heads = self.embed_dims[stage], self.num_heads[stage]
            if channels % heads:
                raise ValueError(
                    f'num_heads {heads} do not divide embed_dims {channels} in stage {stage}'
                )


def _check_sequence(name: str, value: Any, length: int, expected: str) -> list:
    """``length`` values: the given ones, or one value repeated."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * length
    if len(value) != length:
        raise ValueError(f'arch {name} must be {expected}; got {len(value)}: {value}')
    return list(value)


def _check_value(name: str, value: Any, expected: Any) -> None:
    """Check a value against the type of its setting; ``mixers`` are checked by their table."""
    if get_origin(expected) is Literal:
        choices = get_args(expected)
        if value not in choices:
            raise ValueError(f'arch {name} {value!r} unknown; choose one of {_listed(choices)}')
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    valid, what = {
        int: (number and isinstance(value, int) and value > 0, 'positive integers'),
        float: (number, 'numbers'),
        bool: (isinstance(value, bool), 'True or False'),
        str: (True, ''),
    }[expected]
    if not valid:
        raise ValueError(f'arch {name} must be {what}, got {value!r}')


def _listed(names: Iterable[str]) -> str:
    return ', '.join(repr(name) for name in names)


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

ARCH_SETTINGS: dict[str, dict[str, Any]] = {
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
"""The published variants, by name: what differs from the defaults of :class:`Arch`."""


def resolve_arch(arch: str | Mapping[str, Any] | Arch) -> Arch:
    """Complete and check the ``arch`` of a config.

    Args:
        arch: A name in ``ARCH_SETTINGS``, or a dict of the settings of :class:`Arch`. The dict's
            key ``base`` may name a published variant that the other keys change; without it,
            ``embed_dims``, ``mixers`` and ``num_heads`` are required.

    Raises:
        ValueError: Unknown name or key, missing key, wrong length, or values that do not fit.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        arch = dict(base=arch)
    if not isinstance(arch, Mapping):
        raise ValueError(f'arch must be a name or a dict, got {type(arch).__name__}')
    arch = dict(arch)
    base = arch.pop('base', None)
    if base is not None and base not in ARCH_SETTINGS:
        raise ValueError(f'unknown arch {base!r}; choose one of {_listed(ARCH_SETTINGS)}')
    settings = {setting.name: setting for setting in fields(Arch)}
    unknown = arch.keys() - settings.keys()
    if unknown:
        raise ValueError(f'unknown arch key {_listed(unknown)}; the keys are {_listed(settings)}')
    values = {**ARCH_SETTINGS.get(base, {}), **arch}
    missing = [
        name
        for name, setting in settings.items()
        if setting.default is setting.default_factory is MISSING and values.get(name) is None
    ]
    if missing:
        raise ValueError(f'arch needs {_listed(missing)} (or a base to take them from)')
    return Arch(**values)

"""Weights: read checkpoint files, rename published weights, compare weights with a model.

Every part of the package that opens a checkpoint goes through :func:`read_checkpoint`, and every
report of what does not fit is a :class:`Mismatch`.
"""

import os
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

ENTRIES = ('state_dict_ema', 'model_ema', 'state_dict', 'model', 'ema_state_dict')
"""Where a checkpoint file may hold its weights, in order of preference.

timm keeps averaged (EMA) weights beside the raw ones and evaluates the averaged ones. mmengine's
EMAHook swaps them: ``state_dict`` is averaged and ``ema_state_dict`` is raw.
"""


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`read_checkpoint` finds in a file.

    Attributes:
        weights: Tensors by name, without the ``module.`` prefix of parallel models.
        entry: The entry of the file that holds them; None if the file holds nothing else.
        content: The whole file. Classes and functions that it names are replaced by empty dicts.
    """

    weights: dict[str, Tensor]
    entry: str | None
    content: Mapping[str, Any]


def read_checkpoint(path: str | os.PathLike[str], entries: Sequence[str] = ENTRIES) -> Checkpoint:
    """Read the weights of a checkpoint file to the CPU.

    A local file is read without running any code: classes and functions that it names are never
    called. Its tensors may be memory-mapped, so do not write to the file while they are in use.

    Args:
        path: A local file, or a URL that mmengine's ``CheckpointLoader`` takes.
        entries: Entries that may hold the weights, in order of preference. A file with none of
            them must hold weights and nothing else.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or holds no weights.
    """
    path = os.fspath(path)
    if '://' in path:
        from mmengine.runner.checkpoint import CheckpointLoader  # slow to import

        content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    else:
        content = _read_local(path)
    mapping = content if isinstance(content, Mapping) else {}
    entry = next((e for e in entries if mapping.get(e) and isinstance(mapping[e], Mapping)), None)
    weights = mapping if entry is None else mapping[entry]
    if not weights or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        found = some([str(name) for name in mapping], most=8) or type(content).__name__
        raise ValueError(
            f'{path} holds no weights: expected tensors by name, on their own or under '
            f'{" or ".join(entries)}; found {found}'
        )
    # mmengine's averaged model counts its updates beside the wrapped model.
    wrapped = {name: value for name, value in weights.items() if name != 'steps'}
    if wrapped and all(name.startswith('module.') for name in wrapped):
        weights = {name.removeprefix('module.'): value for name, value in wrapped.items()}
    return Checkpoint(dict(weights), entry, mapping)


def _read_local(path: str) -> Any:
    if os.path.isdir(path):
        raise ValueError(f'{path} is a folder; expected a checkpoint file')
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no such file: {path}')
    names: list[str] = []
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:  # files from before PyTorch 1.6 are not; they must hold nothing but plain data
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins: list[Any] = [(_Value if n.startswith('numpy.') else _Object, n) for n in names]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter('ignore')
            return torch.load(path, map_location='cpu', weights_only=True, mmap=zipped)
    except PermissionError as error:
        raise ValueError(f'cannot read {path}: {error.strerror}') from error
    except Exception as error:  # a damaged file can raise anything
        reason = 'it is damaged (an interrupted download?) or not a PyTorch checkpoint'
        if names:
            reason += f', or unsafe: it names {some(sorted(names))}'
        raise ValueError(f'cannot read {path}: {reason}') from error


class _Object:
    """Stand-in for a class or function that a file names: calling it returns an empty dict.

    It is an OrderedDict, whose items PyTorch's safe reader sets; those of subclasses it refuses.
    """

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class _Value:
    """Stand-in for values of numpy, whose state is not a dict."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class Mismatch:
    """Why weights do not fit a model; falsy if they do.

    Attributes:
        missing: Names that only the model has.
        unexpected: Names that only the weights have.
        sizes: Names whose shapes differ, with both shapes.
    """

    missing: list[str]
    unexpected: list[str]
    sizes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.sizes)

    def __str__(self) -> str:
        """One line: the first names of each list, and how many more there are."""
        titles = 'missing ', 'unexpected ', 'size mismatch: '
        lists = zip(titles, (self.missing, self.unexpected, self.sizes))
        return '; '.join(title + some(names) for title, names in lists if names)


def compare(expected: nn.Module | Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Mismatch:
    """Compare weights with a model (its parameters and persistent buffers), name by name."""
    if isinstance(expected, nn.Module):
        expected = expected.state_dict()
    return Mismatch(
        missing=[name for name in expected if name not in weights],
        unexpected=[name for name in weights if name not in expected],
        sizes=[
            f'{name} is {tuple(weights[name].shape)} instead of {tuple(value.shape)}'
            for name, value in expected.items()
            if name in weights and weights[name].shape != value.shape
        ],
    )


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + rest


# The rename table: published names -> ours. `*` stands for `weight` and `bias`, `{i}` for a stage,
# `{j}` for a block, `{n}` and `{m}` for its two residual branches, which the published code numbers
# through the stage. A dict is a group: a model has all names of it or none. Of a list of groups, a
# model has exactly one.


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


STEM = [
    {'patch_proj.0.*': 'stem.conv1.*', 'patch_proj.1.norm.*': 'stem.norm1.*'},
    {
        'patch_proj.0.*': 'stem.conv1.*',
        'patch_proj.1.norm.*': 'stem.norm1.*',
        'patch_proj.3.*': 'stem.conv2.*',
        'patch_proj.4.norm.*': 'stem.norm2.*',
    },
]
DOWNSAMPLE = {
    'down_projs.{i}.0.weight': 'downsamples.{i}.conv.weight',
    'down_projs.{i}.1.norm.*': 'downsamples.{i}.norm.*',
}
OUTPUT_NORM = {'norms.{i}.norm.*': 'norm{i}.*'}  # dense tasks: one per output
CLASSIFIER_NORM = {'cls_norm.norm.*': 'norm3.*'}
CLASSIFIER_HEAD = {'cls_head.*': 'head.fc.*'}

# stages.{i}.attns.{j}. -> stages.{i}.{j}.mixer.
DEFORMABLE = {
    **_same('proj_q.*', 'proj_k.*', 'proj_v.*', 'proj_out.*'),
    'conv_offset.0.*': 'conv_offset.dwconv.*',
    'conv_offset.1.norm.*': 'conv_offset.norm.*',
    'conv_offset.3.weight': 'conv_offset.proj.weight',
}
SPATIAL_REDUCTION = _same('q.*', 'kv.*', 'proj.*')
ATTENTIONS = [
    DEFORMABLE,
    DEFORMABLE | _same('rpe_table'),
    DEFORMABLE | _same('rpe_table.*'),
    DEFORMABLE | _same('rpe_table.0.*', 'rpe_table.2.weight'),
    _same('qkv.*', 'proj.*', 'rpb'),
    _same('proj_qkv.*', 'proj_out.*', 'relative_position_bias_table'),
    SPATIAL_REDUCTION,
    SPATIAL_REDUCTION | {'proj_ds.0.*': 'reduction.conv.*', 'proj_ds.1.norm.*': 'reduction.norm.*'},
]
CONVNEXT = _same('*')


def _mixer(renames: Mapping[str, str]) -> dict[str, str]:
    return {f'attns.{{j}}.{name}': f'mixer.{ours}' for name, ours in renames.items()}


# stages.{i}. -> stages.{i}.{j}.
NORMS = {'layer_norms.{n}.norm.*': 'norm1.*', 'layer_norms.{m}.norm.*': 'norm2.*'}
MIXERS = [
    *(_mixer(attention) | NORMS for attention in ATTENTIONS),
    _mixer(CONVNEXT) | {'ln_cnvnxt.{j}.norm.*': 'norm.*'},
]
LAYER_SCALES = [
    {},
    {'layer_scales.{n}.weight': 'scale1.weight', 'layer_scales.{m}.weight': 'scale2.weight'},
    {'layer_scales.{n}.gamma': 'scale1.weight', 'layer_scales.{m}.gamma': 'scale2.weight'},
]
FFNS = [
    {
        'mlps.{j}.linear1.0.*': 'ffn.fc1.*',
        'mlps.{j}.dwc.*': 'ffn.dwconv.*',
        'mlps.{j}.linear2.0.*': 'ffn.fc2.*',
    },
    {'mlps.{j}.chunk.linear1.*': 'ffn.fc1.*', 'mlps.{j}.chunk.linear2.*': 'ffn.fc2.*'},
]
LPU = {'local_perception_units.{j}.*': 'lpu.*'}

BUFFERS = ('relative_position_index', 'attn_mask')  # saved by the published code, computed by ours
NUM_STAGES = 4


def is_published(weights: Iterable[str]) -> bool:
    """Whether these are published names of a DAT or DAT++ model."""
    return any('patch_proj.' in name for name in weights)


def convert_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published DAT or DAT++ weights to the names of our models in MMLab's frameworks.

    Args:
        state_dict: Weights under published names: of a classification model (the entry ``model``
            of its file), of a detector or segmentor (the entry ``state_dict``; the backbone is
            under ``backbone.``), or of the backbone of a dense task alone.

    Returns:
        ``backbone.*`` and ``head.fc.*`` of mmpretrain's ImageClassifier, or ``backbone.*`` and all
        other entries unchanged. Buffers that the published code saved are left out. Values are
        shared with the input; those of plain FFNs are viewed as 1x1 convolutions.

    Raises:
        ValueError: A name of the backbone is unexpected or missing.
    """
    prefix = 'backbone.' if any(name.startswith('backbone.') for name in state_dict) else ''
    backbone = {
        name[len(prefix) :]: value
        for name, value in state_dict.items()
        if name.startswith(prefix) and name.rpartition('.')[2] not in BUFFERS
    }
    renames = _published_names(backbone.keys())
    mismatch = Mismatch(
        missing=[name for name in renames if name not in backbone],
        unexpected=[name for name in backbone if name not in renames],
    )
    if mismatch:
        raise ValueError(f'not a complete published DAT checkpoint: {mismatch}')
    converted = {name: v for name, v in state_dict.items() if not name.startswith(prefix)}
    for name, value in backbone.items():
        if '.chunk.' in name and value.dim() == 2:
            value = value[..., None, None]
        converted[renames[name]] = value
    return converted


def _published_names(names: Set[str]) -> dict[str, str]:
    """Published name -> ours, for every parameter of the model that has most of these names."""
    renames: dict[str, str] = {}

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    def add(
        groups: Sequence[Mapping[str, str]], old: str = '', new: str = 'backbone.', **index: int
    ) -> None:
        """Add the group that the model has most names of."""
        options = [
            {
                old + published.format(**index).replace('*', kind): new
                + ours.format(**index).replace('*', kind)
                for published, ours in group.items()
                for kind in (('weight', 'bias') if '*' in published else ('',))
            }
            for group in groups
        ]
        best = max(options, key=lambda option: len(option.keys() & names))
        renames.update(best)

    add(STEM)
    for i in range(NUM_STAGES - 1):
        add([DOWNSAMPLE], i=i)
    if has('norms.'):
        for i in range(NUM_STAGES):
            add([{}, OUTPUT_NORM], i=i)
    else:
        add([CLASSIFIER_NORM])
        add([CLASSIFIER_HEAD], new='')
    for i in range(NUM_STAGES):
        stage = f'stages.{i}.'
        block = re.compile(re.escape(stage) + r'(?:attns|mlps|local_perception_units)\.(\d+)\.')
        found = [int(match[1]) for match in map(block.match, names) if match]
        lpu = [LPU if has(f'{stage}local_perception_units.') else {}]
        for j in range(max(found, default=0) + 1):
            for groups in (MIXERS, LAYER_SCALES, FFNS, lpu):
                add(groups, stage, f'backbone.{stage}{j}.', j=j, n=2 * j, m=2 * j + 1)
    return renames


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: str | None = None) -> None:
    """Fill a ``DAT`` backbone with the weights of a checkpoint, and log what was loaded.

    The file may hold a classifier, a detector, a segmentor or a backbone alone, under our names or
    the published ones. Output norms are loaded only if the file's model has the same outputs: the
    backbone of a dense task does not take over the norm of a classifier. The mask token of
    ``SimMIMDAT`` is loaded only into another one. Position bias tables of another native resolution
    or window size are resized bicubically. Stages that this backbone does not have are ignored.

    Args:
        backbone: The backbone, a ``DAT``.
        checkpoint: Path or URL, see :func:`read_checkpoint`.
        prefix: Prefix of the backbone's names in the file; default: ``'backbone.'`` if there are
            such names, else none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no weights or is of another variant; the message names the
            first differences.
    """
    weights = read_checkpoint(checkpoint).weights
    if is_published(weights):
        weights = convert_published(weights)
    if prefix is None:
        prefix = 'backbone.' if any(name.startswith('backbone.') for name in weights) else ''
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    ignored = [name for name in weights if not name.startswith(prefix)]
    weights = {name[len(prefix) :]: v for name, v in weights.items() if name.startswith(prefix)}

    own = backbone.state_dict()
    fresh, unused = set(), set()
    for pattern in (r'norm\d\.', 'mask_token'):
        ours, theirs = ({n for n in names if re.match(pattern, n)} for names in (own, weights))
        if ours != theirs:
            fresh |= ours
            unused |= theirs
    for name in list(weights):
        stage = re.match(r'(stages|downsamples)\.(\d+)\.', name)
        if name in unused or (stage and int(stage[2]) >= len(getattr(backbone, stage[1]))):
            ignored.append(prefix + name)
            del weights[name]

    fitted = dict(weights)
    for name, module in backbone.named_modules():
        if hasattr(module, 'resize_tables'):
            module.resize_tables(fitted, f'{name}.')
    resized = [name for name in weights if fitted[name] is not weights[name]]
    expected = {name: value for name, value in own.items() if name not in fresh}
    mismatch = compare(expected, fitted)
    if mismatch:
        arch: Any = backbone.arch
        raise ValueError(
            f'checkpoint {checkpoint} does not fit a DAT with embed_dims {arch.embed_dims} and '
            f'mixers {arch.mixers}: {mismatch}'
        )
    backbone.load_state_dict(fitted, strict=False)
    lines = [f'loaded {len(weights)} of {len(own)} tensors of the backbone from {checkpoint}']
    if fresh:
        lines.append(f'left at their initial values: {", ".join(sorted(fresh))}')
    if resized:
        lines.append(f'position bias tables resized bicubically: {", ".join(resized)}')
    if ignored:
        lines.append(f'not used from the checkpoint: {some(sorted(ignored), most=8)}')
    print_log('\n  '.join(lines), logger='current')

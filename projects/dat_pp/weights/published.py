"""Rename the weights of the published checkpoints to the names of our models."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set

from torch import Tensor

from .mismatch import Mismatch

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


def with_our_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights if their names are the published ones, else return them as they are."""
    return convert_published(weights) if is_published(weights) else dict(weights)


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

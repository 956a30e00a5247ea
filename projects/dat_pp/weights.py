"""Weights: published names to ours, and filling a backbone from any checkpoint."""

import re
from collections.abc import Collection, Iterable, Mapping

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

_NUM_STAGES = 4
_BUFFERS = ('relative_position_index', 'attn_mask')


def _weight_bias(*modules: str) -> list[str]:
    return [f'{module}.{kind}' for module in modules for kind in ('weight', 'bias')]


# What a token mixer of each kind always has, under its published names.
_MIXERS = {
    'D': [
        *_weight_bias('proj_q', 'proj_k', 'proj_v', 'proj_out'),
        *_weight_bias('conv_offset.0', 'conv_offset.1.norm'),
        'conv_offset.3.weight',
    ],
    'N': [*_weight_bias('qkv', 'proj'), 'rpb'],
    'L': [*_weight_bias('proj_qkv', 'proj_out'), 'relative_position_bias_table'],
    'P': _weight_bias('q', 'kv', 'proj'),
    'X': ['weight', 'bias'],
}
# What it may have: all names of one of these rows, or none.
_OPTIONAL = {
    'D': [
        ['rpe_table'],
        _weight_bias('rpe_table'),
        ['rpe_table.0.weight', 'rpe_table.0.bias', 'rpe_table.2.weight'],
    ],
    'P': [_weight_bias('proj_ds.0', 'proj_ds.1.norm')],
}
_MIXER_RENAMES = {
    'conv_offset.0.': 'conv_offset.dwconv.',
    'conv_offset.1.norm.': 'conv_offset.norm.',
    'conv_offset.3.': 'conv_offset.proj.',
    'proj_ds.0.': 'reduction.conv.',
    'proj_ds.1.norm.': 'reduction.norm.',
}


def convert_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published DAT or DAT++ weights to the names of our models in MMLab's frameworks.

    Args:
        state_dict: Weights under published names: of a classification model (the entry ``model``
            of its file), of a detector or segmentor (the entry ``state_dict``; the backbone is
            under ``backbone.``), or of a dense task's backbone alone.

    Returns:
        ``backbone.*`` and ``head.fc.*`` of mmpretrain's ImageClassifier, or ``backbone.*`` and all
        other entries unchanged. Buffers that the published code saved are left out. Values are
        shared with the input; those of plain FFNs are viewed as 1x1 convolutions.

    Raises:
        ValueError: A backbone name is unknown or missing.
    """
    prefix = 'backbone.' if any(name.startswith('backbone.') for name in state_dict) else ''
    backbone = {
        name[len(prefix) :]: value
        for name, value in state_dict.items()
        if name.startswith(prefix) and name.rpartition('.')[2] not in _BUFFERS
    }
    renames = _published_names(backbone)
    unknown = [name for name in backbone if name not in renames]
    missing = [name for name in renames if name not in backbone]
    if unknown or missing:
        problems = {'unknown': unknown, 'missing': missing}
        raise ValueError(
            'not a complete published DAT checkpoint: '
            + '; '.join(f'{kind} {_some(names)}' for kind, names in problems.items() if names)
        )
    converted = {name: v for name, v in state_dict.items() if not name.startswith(prefix)}
    for name, value in backbone.items():
        if '.chunk.' in name and value.dim() == 2:
            value = value[..., None, None]
        converted[renames[name]] = value
    return converted


def _published_names(names: Collection[str]) -> dict[str, str]:
    """Published name -> ours, for every parameter that a model with such names must have."""

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    renames = {}

    def add(published: str, ours: str, kinds: Iterable[str] = ('weight', 'bias')) -> None:
        renames.update({f'{published}.{kind}': f'backbone.{ours}.{kind}' for kind in kinds})

    add('patch_proj.0', 'stem.conv1')
    add('patch_proj.1.norm', 'stem.norm1')
    if has('patch_proj.3.') or has('patch_proj.4.'):
        add('patch_proj.3', 'stem.conv2')
        add('patch_proj.4.norm', 'stem.norm2')
    for i in range(_NUM_STAGES - 1):
        add(f'down_projs.{i}.0', f'downsamples.{i}.conv', ['weight'])
        add(f'down_projs.{i}.1.norm', f'downsamples.{i}.norm')
    if has('norms.'):
        for i in range(_NUM_STAGES):
            if has(f'norms.{i}.'):
                add(f'norms.{i}.norm', f'norm{i}')
    else:
        add('cls_norm.norm', f'norm{_NUM_STAGES - 1}')
        renames |= {f'cls_head.{kind}': f'head.fc.{kind}' for kind in ('weight', 'bias')}

    for i in range(_NUM_STAGES):
        stage = f'stages.{i}'
        pattern = re.compile(rf'{stage}\.(?:attns|mlps|local_perception_units)\.(\d+)\.')
        found = [int(match[1]) for match in map(pattern.match, names) if match]
        for j in range(max(found, default=0) + 1):
            mixer = f'{stage}.attns.{j}.'
            own = {name[len(mixer) :] for name in names if name.startswith(mixer)}
            kind = max(_MIXERS, key=lambda k: len(own.intersection(_MIXERS[k])))
            parts = list(_MIXERS[kind])
            for option in _OPTIONAL.get(kind, []):
                if own.intersection(option):
                    parts += option
            for part in parts:
                ours = part
                for published, new in _MIXER_RENAMES.items():
                    ours = ours.replace(published, new)
                renames[mixer + part] = f'backbone.{stage}.{j}.mixer.{ours}'

            if kind == 'X':
                add(f'{stage}.ln_cnvnxt.{j}.norm', f'{stage}.{j}.norm')
            else:
                for branch in (0, 1):
                    n = 2 * j + branch
                    add(f'{stage}.layer_norms.{n}.norm', f'{stage}.{j}.norm{branch + 1}')
                    for scale in ('weight', 'gamma'):  # classification, dense tasks
                        if has(f'{stage}.layer_scales.{n}.{scale}'):
                            ours = f'backbone.{stage}.{j}.scale{branch + 1}.weight'
                            renames[f'{stage}.layer_scales.{n}.{scale}'] = ours
            mlp = f'{stage}.mlps.{j}'
            if has(f'{mlp}.chunk.'):
                add(f'{mlp}.chunk.linear1', f'{stage}.{j}.ffn.fc1')
                add(f'{mlp}.chunk.linear2', f'{stage}.{j}.ffn.fc2')
            else:
                add(f'{mlp}.linear1.0', f'{stage}.{j}.ffn.fc1')
                add(f'{mlp}.dwc', f'{stage}.{j}.ffn.dwconv')
                add(f'{mlp}.linear2.0', f'{stage}.{j}.ffn.fc2')
            if has(f'{stage}.local_perception_units.'):
                add(f'{stage}.local_perception_units.{j}', f'{stage}.{j}.lpu')
    return renames


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: str | None = None) -> None:
    """Fill a ``DAT`` backbone with the weights of a checkpoint, and log what was loaded.

    The file may hold a classifier, a detector, a segmentor or a backbone alone, under our names or
    the published ones. Output norms are loaded only where the file's model has the same outputs:
    a dense-task backbone does not take over the norm of a classifier. Position bias tables of
    another native resolution or window size are resized bicubically. Stages that this backbone
    does not have are ignored.

    Args:
        backbone: The backbone, a ``DAT``.
        checkpoint: Path or URL, anything that mmengine's CheckpointLoader takes.
        prefix: Where the backbone is in the file; default: ``'backbone.'`` if there is such, else
            the whole file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of another variant; the message names the first differences.
    """
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    weights = content.get('state_dict') or content.get('model') or content
    if any('patch_proj.' in name for name in weights):
        weights = convert_published(weights)
    if prefix is None:
        prefix = 'backbone.' if any(name.startswith('backbone.') for name in weights) else ''
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    ignored = [name for name in weights if not name.startswith(prefix)]
    weights = {name[len(prefix) :]: v for name, v in weights.items() if name.startswith(prefix)}

    own = backbone.state_dict()

    def output_norms(names: Iterable[str]) -> set[str]:
        return {name for name in names if re.match(r'norm\d\.', name)}

    fresh = set()
    if output_norms(weights) != output_norms(own):
        fresh = output_norms(own)
        ignored += [prefix + name for name in output_norms(weights)]
        weights = {name: v for name, v in weights.items() if name not in output_norms(weights)}
    for name in list(weights):
        stage = re.match(r'(stages|downsamples)\.(\d+)\.', name)
        if stage and int(stage[2]) >= len(getattr(backbone, stage[1])):
            ignored.append(prefix + name)
            del weights[name]

    problems = [f'{name} is missing' for name in own if name not in weights.keys() | fresh]
    problems += [f'{name} is not of this model' for name in weights if name not in own]
    resized = [name for name in weights if name in own and weights[name].shape != own[name].shape]
    if not problems:
        try:
            backbone.load_state_dict(weights, strict=False)
        except RuntimeError as error:  # its message has a line per tensor that does not fit
            problems = [line.strip() for line in str(error).split('\n')[1:]]
    if problems:
        arch = backbone.arch
        raise ValueError(
            f'checkpoint {checkpoint} does not fit a DAT with embed_dims {arch.embed_dims} and '
            f'mixers {arch.mixers}: {_some(problems)}'
        )
    lines = [f'loaded {len(weights)} of {len(own)} tensors of the backbone from {checkpoint}']
    if fresh:
        lines.append(f'left at their initial values: {", ".join(sorted(fresh))}')
    if resized:
        lines.append(f'position bias tables resized bicubically: {", ".join(resized)}')
    if ignored:
        lines.append(f'not used from the checkpoint: {_some(sorted(ignored), most=8)}')
    print_log('\n  '.join(lines), logger='current')


def _some(names: list[str], most: int = 3) -> str:
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + rest

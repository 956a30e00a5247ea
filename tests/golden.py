"""Golden cases: outputs and gradients of the published implementations (data/golden)."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / 'data' / 'golden'
CASES = json.loads((DATA / 'index.json').read_text())

_spec = importlib.util.spec_from_file_location('golden_values', DATA / 'values.py')
values = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(values)


def normal(tag: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(values.standard_normal(tag, shape))


def outputs(case: str) -> list[Tensor]:
    with np.load(DATA / f'{case}.npz') as file:
        return [torch.from_numpy(file[f'out{i}']) for i in range(len(file.files))]


def published_keys(name: str) -> dict[str, dict]:
    """Shape and kind of every entry of a published file, by name."""
    return json.loads((DATA / f'keys_{name}.json').read_text())


def arch_of(case: str) -> dict:
    """``arch`` that corresponds to the published constructor's arguments."""
    a = CASES[case]['arguments']
    published_2022 = CASES[case]['code'].startswith('2022')
    four = [None] * 4

    def bias(stage: int) -> str:
        for argument, name in [
            ('dwc_pes', 'dwconv'),
            ('fixed_pes', 'fixed'),
            ('log_cpb', 'log_cpb'),
        ]:
            if a.get(argument, four)[stage]:
                return name
        return 'table' if a['use_pes'][stage] else 'none'

    return dict(
        embed_dims=a['dims'],
        mixers=[''.join(word) for word in a['stage_spec']],
        num_heads=a['heads'],
        offset_groups=[max(1, g) for g in a['groups']],
        offset_strides=[max(1, s) for s in a['strides']],
        offset_kernel_sizes=a.get('ksizes', [9, 7, 5, 3]),
        offset_range=a['offset_range_factor'],
        use_offset=[not off for off in a.get('no_offs', [False] * 4)],
        position_bias=[bias(i) for i in range(4)],
        neighborhood_kernel_size=a.get('nat_ksizes', 7),
        window_size=a.get('window_sizes', 7),
        spatial_reduction_ratios=a.get('sr_ratios', [8, 4, 2, 1]),
        lpu=a.get('use_lpus', False),
        conv_ffn=a.get('use_dwc_mlps', False),
        layer_scale_init_value=a.get('layer_scale_values', 0),
        overlapped=a.get('use_conv_patches', False),
        coordinates='dat' if published_2022 else 'dat++',
        native_resolution=a['img_size'],
    )


# Our names -> published ones: the inverse of the rename table, written independently of it.
_PUBLISHED = [
    (r'^backbone\.', ''),
    (r'^stem\.conv1', 'patch_proj.0'),
    (r'^stem\.norm1', 'patch_proj.1.norm'),
    (r'^stem\.conv2', 'patch_proj.3'),
    (r'^stem\.norm2', 'patch_proj.4.norm'),
    (r'^downsamples\.(\d)\.conv', r'down_projs.\1.0'),
    (r'^downsamples\.(\d)\.norm', r'down_projs.\1.1.norm'),
    (r'^norm(\d)', r'norms.\1.norm'),
    (r'^head\.fc', 'cls_head'),
    (r'(stages\.\d)\.(\d+)\.norm\.', r'\1.ln_cnvnxt.\2.norm.'),
    (r'(stages\.\d)\.(\d+)\.lpu', r'\1.local_perception_units.\2'),
    (r'(stages\.\d)\.(\d+)\.ffn\.dwconv', r'\1.mlps.\2.dwc'),
    (r'(stages\.\d)\.(\d+)\.mixer', r'\1.attns.\2'),
    (r'conv_offset\.dwconv', 'conv_offset.0'),
    (r'conv_offset\.norm', 'conv_offset.1.norm'),
    (r'conv_offset\.proj', 'conv_offset.3'),
    (r'reduction\.conv', 'proj_ds.0'),
    (r'reduction\.norm', 'proj_ds.1.norm'),
]


def published_name(name: str, conv_ffn: bool, dense: bool) -> str:
    """The published name of one of our parameters."""
    for pattern, replacement in _PUBLISHED:
        name = re.sub(pattern, replacement, name)
    if not dense:
        name = name.replace('norms.3.norm', 'cls_norm.norm')
    if match := re.match(r'(stages\.\d)\.(\d+)\.(norm|scale)([12])\.(.+)', name):
        stage, block, kind, branch, rest = match.groups()
        n = 2 * int(block) + int(branch) - 1
        scale = 'gamma' if dense else 'weight'
        name = f'{stage}.layer_norms.{n}.norm.{rest}'
        if kind == 'scale':
            name = f'{stage}.layer_scales.{n}.{scale}'
    linear = r'\1.mlps.\2.linear\3.0' if conv_ffn else r'\1.mlps.\2.chunk.linear\3'
    return re.sub(r'(stages\.\d)\.(\d+)\.ffn\.fc([12])', linear, name)


def published_state(case: str, model: torch.nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of a case under their published names, and the published name of each of ours."""
    c = CASES[case]
    conv_ffn = c['arguments'].get('use_dwc_mlps', [False])[0]
    names, state = {}, {}
    for name, parameter in model.named_parameters():
        published = published_name(name, conv_ffn, 'dense' in c['code'])
        shape = parameter.shape[:2] if '.chunk.' in published else parameter.shape
        names[name] = published
        state[published] = torch.from_numpy(values.parameter(published, shape))
    return state, names

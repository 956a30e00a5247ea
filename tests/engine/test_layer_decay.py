"""Layer-wise learning rate decay asks the backbone of any model for the layers."""

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from dat_pp import DAT

RATE, LR, DECAY = 0.5, 2**-10, 0.05  # powers of two: every learning rate is exact
# Blocks per stage, from the papers.
DEPTHS = {
    'dat-t': (2, 2, 6, 2),
    'dat-s': (2, 2, 18, 2),
    'dat-b': (2, 2, 18, 2),
    'dat-t++': (2, 4, 18, 2),
    'dat-s++': (2, 4, 18, 2),
    'dat-b++': (2, 4, 18, 2),
}
HEADS = {'t': (2, 4, 8, 16), 's': (3, 6, 12, 24), 'b': (4, 8, 16, 32), 'dat-t': (3, 6, 12, 24)}


class Segmentor(nn.Module):
    """A backbone with something behind it, as mmdet's and mmseg's models are."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = nn.Conv2d(4, 2, 1)


def small_dat(arch: str) -> DAT:
    """All blocks of a published variant, with two channels per head."""
    heads = HEADS.get(arch) or HEADS[arch[4]]
    return DAT(dict(base=arch, embed_dims=[2 * number for number in heads]))


def groups(model: nn.Module, paramwise_cfg: dict, **optimizer: float) -> dict[str, dict]:
    """Build the optimizer of ``model`` and return its parameter groups by name."""
    optimizer = dict(type='AdamW', lr=LR, weight_decay=DECAY) | optimizer
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type='BackboneLayerDecayConstructor',
            optim_wrapper_cfg=dict(type='OptimWrapper', optimizer=optimizer),
            paramwise_cfg=paramwise_cfg,
        )
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: group
        for group in constructor(model).optimizer.param_groups
        for parameter in group['params']
    }


@pytest.mark.parametrize('arch', DEPTHS)
def test_learning_rates(arch: str) -> None:
    found = groups(Segmentor(small_dat(arch)), dict(layer_decay_rate=RATE))

    depths = DEPTHS[arch]
    last = sum(depths) + 1  # the stem is layer 0
    layers = {'backbone.stem.': 0, 'backbone.norm': last, 'decode_head.': last}
    for stage, depth in enumerate(depths):
        first = 1 + sum(depths[:stage])
        layers[f'backbone.downsamples.{stage - 1}.'] = first
        for block in range(depth):
            layers[f'backbone.stages.{stage}.{block}.'] = first + block
    del layers['backbone.downsamples.-1.']
    lrs = {prefix: set() for prefix in layers}
    for name, group in found.items():
        (prefix,) = (prefix for prefix in layers if name.startswith(prefix))
        lrs[prefix].add(group['lr'])
    assert lrs == {prefix: {LR * RATE ** (last - layer)} for prefix, layer in layers.items()}


def test_options_of_mmengine_apply_first() -> None:
    model = Segmentor(small_dat('dat-t++'))
    found = groups(
        model,
        dict(
            layer_decay_rate=RATE,
            bias_decay_mult=0.1,
            custom_keys={
                'rpe_table': dict(decay_mult=0.0),
                'decode_head': dict(lr_mult=10.0),
                'stages.3.1': dict(lr_mult=0.1, decay_mult=0.5),
            },
        ),
    )
    table = next(name for name in found if 'stages.3.0' in name and name.endswith('rpe_table'))
    values = {
        name: (found[name]['lr'] / LR, found[name]['weight_decay'] / DECAY)
        for name in (
            table,
            'backbone.stages.3.0.norm1.weight',
            'backbone.stages.3.0.lpu.bias',
            'backbone.stages.3.1.lpu.bias',
            'decode_head.weight',
            'decode_head.bias',
        )
    }
    assert list(values.values()) == [
        pytest.approx(pair)
        for pair in ((0.25, 0), (0.25, 1), (0.25, 0.1), (0.05, 0.5), (10, 1), (10, 1))
    ]


def test_every_backbone_of_a_model_is_asked() -> None:
    model = nn.ModuleDict({'student': Segmentor(small_dat('dat-t')), 'plain': small_dat('dat-t++')})
    found = groups(model, dict(layer_decay_rate=RATE))
    lrs = {name: group['lr'] / LR for name, group in found.items()}
    assert lrs['student.backbone.stem.conv1.weight'] == RATE**13
    assert lrs['plain.stem.conv1.weight'] == RATE**27
    assert lrs['student.decode_head.weight'] == 1


def test_frozen_parameters_have_no_group() -> None:
    backbone = small_dat('dat-t')
    backbone.stem.requires_grad_(False)
    found = groups(backbone, dict(layer_decay_rate=RATE))
    assert {name.partition('.')[0] for name in found} == {
        'stages', 'downsamples', 'norm0', 'norm1', 'norm2', 'norm3'
    }  # fmt: skip


@pytest.mark.parametrize('cfg', [{}, dict(decay_rate=0.9), dict(layer_decay_rate=2)])
def test_rate_is_needed(cfg: dict) -> None:
    with pytest.raises(ValueError, match=r'paramwise_cfg needs layer_decay_rate in \(0, 1\]'):
        groups(torch.nn.Linear(1, 1), cfg)


def test_learning_rate_is_needed() -> None:
    with pytest.raises(ValueError, match='needs the lr of the optimizer'):
        groups(torch.nn.Linear(1, 1), dict(layer_decay_rate=RATE), lr=None)


def test_backbone_with_layers_is_needed() -> None:
    with pytest.raises(ValueError, match='Segmentor has none'):
        groups(Segmentor(nn.Conv2d(3, 4, 1)), dict(layer_decay_rate=RATE))

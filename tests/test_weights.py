"""Renaming published weights, resizing position bias tables, ``init_cfg`` from any checkpoint."""

from pathlib import Path

import golden
import pytest
import torch
from mmengine.registry import MODELS

from dat_pp import DAT, convert_published

FILES = {
    'imagenet_2022_tiny': 'dat-t',
    'imagenet_2022_small': 'dat-s',
    'imagenet_2022_base': 'dat-b',
    'imagenet_2022_base_384': dict(base='dat-b', window_size=12, native_resolution=384),
    'imagenet_pp_tiny': 'dat-t++',
    'imagenet_pp_small': 'dat-s++',
    'imagenet_pp_base': 'dat-b++',
    'dense_pp_tiny': 'dat-t++',
    'dense_pp_small': 'dat-s++',
    'dense_pp_base': 'dat-b++',
}
SMALL = dict(
    embed_dims=[8, 8, 16, 16],
    mixers=['ND', 'LS', 'ND', 'XD'],
    num_heads=[1, 1, 2, 2],
    native_resolution=64,
)


def published(name: str) -> dict[str, torch.Tensor]:
    """The weights of a published file, without values."""
    return {
        key: torch.empty(entry['shape'], device='meta')
        for key, entry in golden.published_keys(name).items()
    }


def test_every_published_file_is_covered() -> None:
    files = {path.stem.removeprefix('keys_') for path in golden.DATA.glob('keys_*.json')}
    assert files == FILES.keys()


@pytest.mark.parametrize('name', FILES)
def test_published_names(name: str) -> None:
    """Renamed, the parameters of a published file are exactly ours, with the same shapes."""
    dense = name.startswith('dense')
    with torch.device('meta'):
        model = DAT(FILES[name], out_indices=(0, 1, 2, 3) if dense else (3,))
    expected = {f'backbone.{key}': value.shape for key, value in model.state_dict().items()}
    if not dense:
        channels = model.arch.embed_dims[-1]
        expected |= {'head.fc.weight': (1000, channels), 'head.fc.bias': (1000,)}
    state = published(name)
    for prefix in ('', 'backbone.') if dense else ('',):
        converted = convert_published({prefix + key: value for key, value in state.items()})
        assert {key: value.shape for key, value in converted.items()} == expected


def test_rest_of_a_dense_checkpoint_is_unchanged() -> None:
    state = {f'backbone.{key}': v for key, v in published('dense_pp_tiny').items()}
    rest = {
        'neck.fpn_convs.0.conv.weight': torch.rand(2),
        'stages.0.x': torch.rand(1),
        'attn_mask': torch.rand(1),
    }
    converted = convert_published({**state, **rest})
    assert {k: v for k, v in converted.items() if not k.startswith('backbone.')} == rest


@pytest.mark.parametrize(
    'removed',
    [
        'patch_proj.4.norm.bias',
        'down_projs.1.0.weight',
        'cls_head.weight',
        'cls_norm.norm.bias',
        'stages.0.attns.0.rpb',
        'stages.1.attns.3.conv_offset.3.weight',
        'stages.2.attns.17.proj_q.bias',
        'stages.2.mlps.3.dwc.weight',
        'stages.2.layer_norms.7.norm.weight',
        'stages.3.local_perception_units.1.bias',
    ],
)
def test_missing_name(removed: str) -> None:
    state = published('imagenet_pp_tiny')
    del state[removed]
    with pytest.raises(ValueError, match=f'missing {removed}') as error:
        convert_published(state)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'added',
    ['stages.0.attns.0.scale', 'stages.4.proj.weight', 'pos_embed', 'norms.0.norm.gamma'],
)
def test_unknown_name(added: str) -> None:
    state = {**published('dense_pp_tiny'), added: torch.rand(1)}
    with pytest.raises(ValueError, match=f'unexpected {added}'):
        convert_published(state)


def test_missing_stage() -> None:
    state = {k: v for k, v in published('imagenet_pp_tiny').items() if 'stages.3' not in k}
    with pytest.raises(ValueError, match=r'missing stages\.3'):
        convert_published(state)


def classifier(arch: dict, **backbone) -> torch.nn.Module:
    pytest.importorskip('mmpretrain.models')
    model = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='DAT', arch=arch, out_indices=(3,), **backbone),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=16),
    )
    return MODELS.build(model)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Path of a classifier's checkpoint as mmengine's runner saves it."""
    torch.manual_seed(0)
    model = classifier(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / 'classifier.pth'
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, path)
    return path


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The messages that loading a checkpoint logs."""
    messages = []
    monkeypatch.setattr('dat_pp.weights.loading.log', messages.append)
    return messages


def test_pretrained_dense_backbone(checkpoint: Path, log: list[str]) -> None:
    backbone = DAT(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)))
    backbone.init_weights()
    weights = torch.load(checkpoint)['state_dict']
    for name, value in backbone.state_dict().items():
        if name.startswith('norm'):
            fresh = torch.ones_like(value) if name.endswith('weight') else torch.zeros_like(value)
            assert torch.equal(value, fresh), name
        else:
            assert torch.equal(value, weights['backbone.' + name]), name
    count = len(backbone.state_dict())
    loaded, fresh, unused = log[0].split('\n  ')
    assert loaded == f'loaded {count - 8} of {count} tensors of the backbone from {checkpoint}'
    names = [f'norm{i}.{kind}' for i in range(4) for kind in ('bias', 'weight')]
    assert fresh == f'left at their initial values: {", ".join(names)}'
    names = ['backbone.norm3.bias', 'backbone.norm3.weight', 'head.fc.bias', 'head.fc.weight']
    assert unused == f'not used from the checkpoint: {", ".join(names)}'


def test_pretrained_inside_a_model(checkpoint: Path) -> None:
    """``init_weights`` of a whole model reaches the backbone; a classifier loads the norm."""
    model = classifier(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)))
    model.init_weights()
    weights = torch.load(checkpoint)['state_dict']
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, weights['backbone.' + name]), name


def test_pretrained_from_published_names(tmp_path: Path) -> None:
    case = 'pp_micro'
    source = classifier(golden.arch_of(case)).double()
    state, _ = golden.published_state(case, source)
    path = tmp_path / 'published.pth'
    torch.save({'model': state}, path)
    backbone = DAT(golden.arch_of(case)).double()
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    backbone.init_weights()
    assert torch.equal(backbone.stem.conv1.weight, state['patch_proj.0.weight'])


def test_fewer_stages_than_the_checkpoint(checkpoint: Path) -> None:
    init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint), prefix='backbone')
    DAT(SMALL, out_indices=(0, 1), init_cfg=init_cfg).init_weights()


def bicubic(table: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(table[None], (size, size), mode='bicubic')[0]


@pytest.mark.parametrize('how', ['init_cfg', 'load_state_dict', 'mmengine'])
def test_bias_tables_are_resized(how: str, checkpoint: Path, log: list[str]) -> None:
    arch = dict(SMALL, native_resolution=96, window_size=9)
    backbone = DAT(arch, out_indices=(3,))
    weights = torch.load(checkpoint)['state_dict']
    own = {k.removeprefix('backbone.'): v for k, v in weights.items() if 'backbone' in k}
    own['stages.3.0.mixer.weight'] = backbone.stages[3][0].mixer.weight  # kernel = window size
    weights['backbone.stages.3.0.mixer.weight'] = own['stages.3.0.mixer.weight']
    before = {k: v.clone() for k, v in own.items()}
    if how == 'init_cfg':
        torch.save(weights, checkpoint)
        backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
        backbone.init_weights()
        assert 'position bias tables resized bicubically: stages.0.1.mixer.rpe_table' in log[0]
    elif how == 'mmengine':
        from mmengine.runner.checkpoint import load_state_dict

        load_state_dict(backbone, own, strict=True)
    else:
        backbone.load_state_dict(own)
    assert all(torch.equal(before[k], own[k]) for k in before)

    table = backbone.stages[0][1].mixer.rpe_table
    expected = bicubic(before['stages.0.1.mixer.rpe_table'], 47)
    torch.testing.assert_close(table.detach(), expected)
    table = backbone.stages[1][1].mixer.relative_position_bias_table
    old = before['stages.1.1.mixer.relative_position_bias_table']
    expected = bicubic(old.T.reshape(1, 13, 13), 17).flatten(1).T
    torch.testing.assert_close(table.detach(), expected)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(embed_dims=[8, 8, 16, 32]), 'size mismatch: downsamples.2.conv.weight is '),
        (dict(num_heads=[2, 1, 2, 2]), 'size mismatch: stages.0.0.mixer.rpb is '),
        (dict(lpu=False), 'unexpected stages.0.0.lpu.weight'),
        (dict(mixers=['ND', 'LSD', 'ND', 'XD']), 'missing stages.1.2.lpu.weight'),
        (dict(neighborhood_kernel_size=5), 'size mismatch: stages.0.0.mixer.rpb is '),
    ],
)
def test_checkpoint_of_another_variant(changes: dict, message: str, checkpoint: Path) -> None:
    arch = dict(SMALL, **changes)
    backbone = DAT(arch, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)))
    with pytest.raises(ValueError, match=message) as error:
        backbone.init_weights()
    assert '\n' not in str(error.value)
    assert f'checkpoint {checkpoint} does not fit a DAT with embed_dims' in str(error.value)


def test_missing_checkpoint_file(tmp_path: Path) -> None:
    path = tmp_path / 'absent.pth'
    with pytest.raises(FileNotFoundError, match=str(path)):
        DAT(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()

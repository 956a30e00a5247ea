"""The classifier: published logits, and the methods that timm's users expect."""

import re
from pathlib import Path

import golden
import pytest
import torch
from tiny_models import ALL_MIXERS, TINY, V1

from dat_pp import DAT, DATClassifier, convert_published, create_model

CLASSIFIERS = [name for name, case in golden.CASES.items() if 'classification' in case['code']]


@pytest.fixture
def model() -> DATClassifier:
    torch.manual_seed(0)
    return DATClassifier(TINY, num_classes=5).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def float64() -> None:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('source', ['published', 'converted', 'safetensors'])
@pytest.mark.parametrize('case', CLASSIFIERS)
def test_golden_logits(case: str, source: str, tmp_path: Path, float64: None) -> None:
    """From a published, a converted and a safetensors file of the plain names."""
    arch = golden.arch_of(case)
    path = tmp_path / 'weights.pth'
    plain = create_model(arch, num_classes=10)
    state, _ = golden.published_state(case, plain)
    converted = convert_published(state)
    if source == 'published':
        torch.save(dict(model=state), path)
    elif source == 'converted':
        torch.save(dict(state_dict=converted, meta={}), path)
    else:
        save_file = pytest.importorskip('safetensors.torch').save_file
        path = path.with_suffix('.safetensors')
        names = {name: name.removeprefix('backbone.') for name in converted}
        save_file({names[name]: value.contiguous() for name, value in converted.items()}, path)
    model = create_model(arch, pretrained=path, num_classes=10).eval()
    images = golden.values.model_input(case, golden.CASES[case]['input_shape'])
    with torch.no_grad():
        logits = model(torch.from_numpy(images))
    (want,) = golden.outputs(case)
    assert (logits - want).abs().max() <= 1e-8 * want.abs().max()


def test_checkpoint_of_mmpretrain(model: DATClassifier, x: torch.Tensor, tmp_path: Path) -> None:
    """Parameters have the names of mmpretrain's classifier, those of the backbone its prefix."""
    registry = pytest.importorskip('mmpretrain.registry')
    pytest.importorskip('mmpretrain.models')
    theirs = registry.MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='DAT', arch=TINY, out_indices=(3,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=5, in_channels=32),
        )
    ).eval()
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=theirs.state_dict(), meta={}), path)
    ours = create_model(TINY, pretrained=path, num_classes=5).eval()
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours.state_dict().keys() == {
        name.removeprefix('backbone.') for name in theirs.state_dict()
    }


def test_features_and_head(model: DATClassifier, x: torch.Tensor) -> None:
    features = model.forward_features(x)
    assert features.shape == (2, 32, 2, 3)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.flatten(2).mean(2))
    assert torch.equal(model(x), model.get_classifier()(pooled))
    assert model.num_features == model.head_hidden_size == 32
    (pyramid,) = DAT.forward(model, x)
    assert torch.equal(pyramid, features)


@pytest.mark.parametrize(('classes', 'pool'), [(7, None), (7, 'avg'), (0, None), (0, '')])
def test_reset_classifier(
    model: DATClassifier, x: torch.Tensor, classes: int, pool: str | None
) -> None:
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    model.reset_classifier(classes, pool)
    assert model.num_classes == classes
    out = model(x)
    if classes:
        assert out.shape == (2, 7)
        assert model.get_classifier().weight.shape == (7, 32)
    else:
        assert torch.equal(out, features if pool == '' else pooled)
        assert 'head.fc.weight' not in model.state_dict()


def test_reset_classifier_keeps_device_dtype_mode_and_pooling() -> None:
    with torch.device('meta'):
        model = DATClassifier(TINY, 0, global_pool='', head_drop_rate=0.3).double().eval()
    model.reset_classifier(0)
    assert model.head.global_pool == ''
    model.reset_classifier(4, 'avg')
    weight = model.get_classifier().weight
    assert (weight.dtype, weight.device.type) == (torch.float64, 'meta')
    assert not any(module.training for module in model.modules())
    assert model.head.drop.p == 0.3


def test_head_dropout() -> None:
    model = DATClassifier(TINY, num_classes=0, head_drop_rate=0.5).train()
    out = model.forward_head(torch.ones(1, 32, 2, 2))
    assert set(out.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ('indices', 'stages'),
    [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ((-1, 1), [1, 3]), ([-3], [1])],
)
@pytest.mark.parametrize('norm', [False, True])
def test_intermediates(
    indices: object, stages: list[int], norm: bool, model: DATClassifier, x: torch.Tensor
) -> None:
    """Maps of the stages, and ``forward_features``; timm's meaning of ``indices``."""
    maps, step = [], model.embed(x)
    for i in range(4):
        step = model.forward_stage(i, step)
        maps.append(model.norm3(step) if norm and i == 3 else step)
    final, found = model.forward_intermediates(x, indices, norm=norm)
    assert torch.equal(final, model.forward_features(x))
    for one, stage in zip(found, stages, strict=True):
        assert torch.equal(one, maps[stage])
        info = model.feature_info[stage]
        assert one.shape[1] == info['num_chs']
        assert one.shape[2:] == (64 // info['reduction'], 96 // info['reduction'])
        assert model.get_submodule(info['module']) is model.stages[stage]

    alone = model.forward_intermediates(
        x, indices, norm=norm, output_fmt='NHWC', intermediates_only=True, stop_early=True
    )
    assert all(torch.equal(a, b.permute(0, 2, 3, 1)) for a, b in zip(alone, found, strict=True))


def test_stop_early_computes_no_later_stage(model: DATClassifier, x: torch.Tensor) -> None:
    model.stages[2].forward = None
    last, (only,) = model.forward_intermediates(x, [1], stop_early=True)
    assert torch.equal(last, only)
    with pytest.raises(TypeError):
        model.forward_intermediates(x, [1])


@pytest.mark.parametrize('indices', [1, [0, 1], [2]])
def test_prune(indices: object, model: DATClassifier, x: torch.Tensor) -> None:
    before = model.forward_intermediates(x, indices, intermediates_only=True)
    kept = model.prune_intermediate_layers(indices)
    assert len(model.stages) == kept[-1] + 1
    assert len(model.downsamples) == kept[-1]
    final, after = model.forward_intermediates(x, kept)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert torch.equal(model(x), final)  # neither pooling nor classes
    assert (model.num_classes, model.num_features) == (0, final.shape[1])


def test_prune_norm_alone(model: DATClassifier, x: torch.Tensor) -> None:
    final = model.forward_intermediates(x, 1, intermediates_only=True)[0]
    model.prune_intermediate_layers(1, prune_norm=True, prune_head=False)
    assert torch.equal(model.forward_features(x), final)
    assert model(x).shape == (2, 5)


def test_grad_checkpointing(model: DATClassifier, x: torch.Tensor) -> None:
    """Same gradients; blocks run again in the backward pass, until it is disabled."""
    calls = []
    block = model.stages[2][0]
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    model.train()
    gradients = []
    for enable, expected in [(True, 2), (False, 1)]:
        model.set_grad_checkpointing(enable)
        calls.clear()
        model.zero_grad()
        model(x).square().mean().backward()
        assert len(calls) == expected
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


@pytest.mark.parametrize('arch', [TINY, ALL_MIXERS, V1])
def test_layers_of_timm_are_those_of_layer_decay(arch: dict) -> None:
    model = DATClassifier(arch)
    groups = {}
    for coarse in (False, True):
        matcher = model.group_matcher(coarse=coarse)
        rules = [(matcher['stem'], 0, None)]
        rules += [(pattern, 1, position) for pattern, position in matcher['blocks']]
        for name, _ in model.named_parameters():
            matches = [(re.match(pattern, name), *rest) for pattern, *rest in rules]
            found = next((match for match in matches if match[0]), None)
            key = (2,) if found is None else (found[1], *map(int, found[0].groups()))
            key += found[2] or () if found else ()
            groups.setdefault(coarse, {})[name] = key
    order = sorted(set(groups[False].values()))
    depths = {name: model.get_layer_depth(name)[0] for name in groups[False]}
    assert {name: order.index(key) for name, key in groups[False].items()} == depths
    assert all(groups[True][name] == key[:2] for name, key in groups[False].items())


def test_no_weight_decay_is_that_of_the_published_recipe() -> None:
    """Beside biases and norms, our ImageNet config exempts the same parameters."""
    pytest.importorskip('mmpretrain')
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper

    import dat_pp

    cfg = Config.fromfile(dat_pp.config('imagenet/dat-tiny_32xb128_in1k'))
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.optim_wrapper.pop('loss_scale')
    model = DATClassifier(dict(ALL_MIXERS, position_bias=['table', 'fixed', 'log_cpb', 'dwconv']))
    exempt = set()
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in build_optim_wrapper(model, cfg.optim_wrapper).param_groups:
        if group['weight_decay'] == 0:
            exempt |= {names[p] for p in group['params'] if p.ndim > 1}
    assert exempt
    assert exempt == {n for n in model.no_weight_decay() if model.get_parameter(n).ndim > 1}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_classes=-1), 'num_classes must be an integer of 0 or more, got -1'),
        (dict(global_pool='max'), "global_pool must be 'avg' or '' .none., got 'max'"),
        (dict(head_drop_rate=1.0), r'head_drop_rate must be in \[0, 1\), got 1.0'),
    ],
)
def test_invalid_argument(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DATClassifier(TINY, **arguments)


@pytest.mark.parametrize('indices', [[4], [-5], 5, 0, []])
def test_stage_that_does_not_exist(indices: object, model: DATClassifier, x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match='indices must be stages of 0 to 3, got'):
        model.forward_intermediates(x, indices)


def test_unknown_format(model: DATClassifier, x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW' or 'NHWC', got 'NLC'"):
        model.forward_intermediates(x, output_fmt='NLC')

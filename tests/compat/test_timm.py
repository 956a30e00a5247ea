"""Our models through timm: names, arguments, weights, features, training and export."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import golden
import numpy as np
import pytest
import timm
import torch
from fresh import python
from mmengine.config import Config
from mmpretrain.registry import MODELS, TRANSFORMS
from PIL import Image
from safetensors.torch import save_file
from timm.models import create_feature_extractor
from timm.optim import create_optimizer_v2
from tiny_models import ALL_MIXERS, TINY, V1
from torch import Tensor, nn

import dat_pp
from dat_pp import catalog
from dat_pp.compat import timm as compat

# Name and tag in timm -> config.
CONFIGS = {
    'dat_t.in1k': 'dat-tiny_32xb128_in1k',
    'dat_s.in1k': 'dat-small_32xb128_in1k',
    'dat_b.in1k': 'dat-base_32xb128_in1k',
    'dat_b_384.in1k': 'dat-base_64xb24_in1k-384px',
    'dat_t_pp.in1k': 'dat-pp-tiny_32xb128_in1k',
    'dat_s_pp.in1k': 'dat-pp-small_32xb128_in1k',
    'dat_b_pp.in1k': 'dat-pp-base_64xb64_in1k',
    'dat_b_pp.in1k_384': 'dat-pp-base_64xb24_in1k-384px',
}


def create(arch: dict = TINY, **kwargs: Any) -> nn.Module:
    """A seeded model in evaluation mode; 64 x 64 is its native resolution."""
    torch.manual_seed(0)
    return timm.create_model('dat_t_pp', arch=arch, **kwargs).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_names() -> None:
    """Names with tags; none is called pretrained, since nothing can be downloaded."""
    assert set(timm.list_models(module='dat', include_tags=True)) == set(CONFIGS)
    assert set(timm.list_models('dat_*', include_tags=True)) == set(CONFIGS)
    assert timm.list_models('dat_*', pretrained=True) == []


@pytest.mark.slow
@pytest.mark.parametrize('imports', ['import dat_pp, timm', 'import timm, dat_pp'])
def test_registered_in_either_order(imports: str, tmp_path: Path) -> None:
    code = f'{imports}; print(len(timm.list_models("dat_*")))'
    done = python(tmp_path, '-c', code)
    assert (done.stdout, done.stderr) == ('7\n', '')


def test_unknown_version_of_timm_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(compat, 'dat')
    monkeypatch.setitem(__import__('sys').modules, 'dat_pp.compat.timm.dat', None)
    with pytest.warns(UserWarning, match='dat_pp registers no models with this timm'):
        compat._register_models(timm.models)


@pytest.mark.parametrize('name', CONFIGS)
def test_published_size_and_license(name: str) -> None:
    model = timm.create_model(name, device='meta')
    published = {entry['Name']: entry for entry in catalog.models('mmpretrain')}[CONFIGS[name]]
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == published['Metadata']['Parameters']
    top1 = published['Results'][0]['Metrics']['Top 1 Accuracy']
    assert f'accuracy {top1:.1f} %' in model.pretrained_cfg['description']
    assert model.pretrained_cfg['license'] == 'apache-2.0'
    assert model.pretrained_cfg['architecture'] == name.partition('.')[0]


@pytest.mark.parametrize('name', CONFIGS)
def test_preprocessing_of_the_configs(name: str, tmp_path: Path) -> None:
    """Same pixels as mmpretrain's test pipeline and preprocessor, up to rounding to 8 bits."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    image = image.resize((320, 240), Image.Resampling.BICUBIC)
    image.save(tmp_path / 'image.png')
    cfg = Config.fromfile(dat_pp.config(CONFIGS[name]))
    sample = dict(img_path=str(tmp_path / 'image.png'), gt_label=0)
    for transform in cfg.test_dataloader.dataset.pipeline:
        sample = TRANSFORMS.build(transform)(sample)
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    expected = MODELS.build(dict(type='ClsDataPreprocessor', **cfg.data_preprocessor))(batch)

    model = timm.create_model(name, device='meta')
    data = timm.data.resolve_model_data_config(model)
    inputs = timm.data.create_transform(**data, is_training=False)(image)
    assert inputs.shape == data['input_size']
    step = 1 / 255 / min(data['std'])
    torch.testing.assert_close(inputs[None], expected['inputs'], rtol=0, atol=1.01 * step)


CLASSIFIERS = [case for case in golden.CASES if 'dense' not in golden.CASES[case]['code']]


@pytest.mark.parametrize('case', CLASSIFIERS)
def test_golden_logits(case: str, tmp_path: Path) -> None:
    """The published numbers, from a file as the published code wrote it."""
    arguments = dict(arch=golden.arch_of(case), dtype=torch.float64)
    state, _ = golden.published_state(case, create(num_classes=10, **arguments))
    torch.save(dict(model=state, config=SimpleNamespace(TAG='published')), tmp_path / 'dat.pth')
    overlay = dict(file=tmp_path / 'dat.pth')
    model = create(pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    assert model.num_classes == 10
    x = golden.values.model_input(case, golden.CASES[case]['input_shape'])
    with torch.no_grad():
        out = model(torch.from_numpy(x))
    [want] = golden.outputs(case)
    assert (out - want).abs().max() <= 1e-8 * want.abs().max()


FORMATS: dict[str, Callable[[dict[str, Tensor]], dict]] = {
    'timm.pth': lambda weights: dict(state_dict=weights, arch='dat_t_pp'),
    'mmpretrain.pth': lambda weights: dict(
        state_dict={k if 'head' in k else f'backbone.{k}': v for k, v in weights.items()}
    ),
    'weights.safetensors': lambda weights: weights,
}


@pytest.fixture(params=FORMATS)
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[nn.Module, str]:
    """A classifier of 10 classes, and a file with its weights."""
    path = tmp_path / request.param
    model = create(num_classes=10)
    content = FORMATS[path.name](model.state_dict())
    (save_file if path.suffix == '.safetensors' else torch.save)(content, path)
    return model, str(path)


def load(path: str, **kwargs: Any) -> nn.Module:
    return create(pretrained=True, pretrained_cfg_overlay=dict(file=path), **kwargs)


@torch.no_grad()
def test_weights_of_a_file(trained: tuple[nn.Module, str], x: Tensor) -> None:
    """Complete, with new heads, with other input channels and for features."""
    model, path = trained
    assert torch.equal(load(path)(x), model(x))
    assert torch.equal(load(path, num_classes=10)(x), model(x))
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert torch.equal(load(path, num_classes=0)(x), pooled)
    other = load(path, num_classes=7)
    assert other(x).shape == (2, 7)
    assert torch.equal(other.forward_features(x), model.forward_features(x))

    gray = load(path, in_chans=1)
    torch.testing.assert_close(gray(x[:, :1]), model(x[:, :1].expand(-1, 3, -1, -1)))

    pyramid = load(path, features_only=True)
    for ours, theirs in zip(pyramid(x), model.forward_intermediates(x)[1], strict=True):
        assert torch.equal(ours, theirs)
    for part in (pyramid, pyramid.model):
        assert part.pretrained_cfg['file'] == path
        assert 'state_dict' not in part.pretrained_cfg


def test_checkpoint_path(tmp_path: Path, x: Tensor) -> None:
    """timm's own argument for files that its training script wrote."""
    path = tmp_path / 'last.pth.tar'
    model = create(num_classes=10)
    torch.save(dict(state_dict=model.state_dict(), arch='dat_t_pp'), path)
    assert torch.equal(create(num_classes=10, checkpoint_path=path)(x), model(x))


@torch.no_grad()
def test_weights_of_a_detector(tmp_path: Path, x: Tensor) -> None:
    """They have no head, and norms of their own; a classifier gets a new head."""
    backbone = dat_pp.DAT(TINY)
    weights = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    weights['neck.conv.weight'] = torch.zeros(1)
    torch.save(dict(state_dict=weights), tmp_path / 'detector.pth')
    path = str(tmp_path / 'detector.pth')
    pyramid = load(path, features_only=True)
    assert torch.equal(pyramid(x)[0], backbone.forward_stage(0, backbone.embed(x)))
    assert load(path, num_classes=3)(x).shape == (2, 3)


def test_no_weights_to_download() -> None:
    with pytest.raises(ValueError, match=r'downloads nothing: .* of dat_s .*file=PATH') as error:
        timm.create_model('dat_s', pretrained=True)
    assert '\n' not in str(error.value)


def test_file_of_another_variant(tmp_path: Path) -> None:
    with torch.device('meta'):
        weights = dat_pp.create_model('dat-s++').state_dict()
    weights = {name: torch.zeros(1).expand(value.shape) for name, value in weights.items()}
    torch.save(weights, tmp_path / 'dat.pth')
    expected = rf'checkpoint {tmp_path}/dat.pth does not fit .* it holds a dat-s\+\+; '
    with pytest.raises(ValueError, match=expected):
        load(str(tmp_path / 'dat.pth'))


def test_arguments() -> None:
    """timm's names: ``drop_rate`` is the dropout of the head."""
    rates = dict(drop_rate=0.1, proj_drop_rate=0.2, attn_drop_rate=0.3, drop_path_rate=0.4)
    model = create(num_classes=3, in_chans=4, **rates)
    assert model.head.drop.p == 0.1
    block = model.stages[3][1]
    assert (block.ffn.drop.p, block.mixer.attn_drop) == (0.2, 0.3)
    assert block.drop_path.rate == pytest.approx(0.4)
    assert model(torch.rand(1, 4, 64, 64)).shape == (1, 3)
    with pytest.raises(TypeError, match='unexpected keyword argument'):
        create(img_size=64)


def test_without_pooling_or_classes(x: Tensor) -> None:
    model = create(num_classes=5, global_pool='')
    dense = model(x)
    assert dense.shape == (2, 5, 2, 2)
    model.reset_classifier(5, 'avg')
    model.head.fc.load_state_dict(create(num_classes=5, global_pool='').head.fc.state_dict())
    torch.testing.assert_close(model(x), dense.mean((2, 3)))
    model.reset_classifier(0, '')
    assert torch.equal(model(x), model.forward_features(x))


@pytest.mark.parametrize('arch', [ALL_MIXERS, V1])
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2), (0,), (-1,), 2])
def test_features(arch: dict, out_indices: Any, x: Tensor) -> None:
    """Stages, channels and strides; contiguous; no parameter without a gradient."""
    model = create(arch, features_only=True, out_indices=out_indices).train()
    features = model(x)
    maps = create(arch).train().forward_intermediates(x, intermediates_only=True)
    wanted = [maps[i] for i in ([2, 3] if out_indices == 2 else out_indices)]
    assert all(feature.is_contiguous() for feature in features)
    for feature, want in zip(features, wanted, strict=True):
        assert torch.equal(feature, want)
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    assert [64 // f.shape[2] for f in features] == model.feature_info.reduction()
    sum(feature.sum() for feature in features).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_gradient_checkpointing(x: Tensor) -> None:
    """Same gradients; every block but none of its layers keeps what the backward pass needs."""
    grads, calls = [], []
    for enable in (False, True):
        model = create(features_only=True).train()
        model.set_grad_checkpointing(enable)
        model.model.stages[2][1].mixer.register_forward_hook(lambda *_: calls.append(1))
        sum(feature.square().mean() for feature in model(x)).backward()
        grads.append([p.grad for p in model.parameters()])
    assert len(calls) == 1 + 2
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize('norm', [False, True])
def test_pruned_stages(norm: bool, x: Tensor) -> None:
    """What is left computes the same and is used; the width of a new head follows."""
    model = create(ALL_MIXERS)
    with torch.no_grad():
        maps = model.forward_intermediates(x, norm=norm, intermediates_only=True)
    for i in range(4):
        pruned = copy.deepcopy(model).train()
        kept = pruned.prune_intermediate_layers([i], prune_norm=not norm)
        [found] = pruned.forward_intermediates(x, kept, norm=norm, intermediates_only=True)
        torch.testing.assert_close(found, maps[i])
        found.sum().backward()
        assert [n for n, p in pruned.named_parameters() if p.grad is None] == []
        pruned.reset_classifier(7, 'avg')
        assert pruned(x).shape == (2, 7)


def test_layers_and_weight_decay_of_the_optimizer() -> None:
    model = create(ALL_MIXERS)
    optimizer = create_optimizer_v2(model, opt='adamw', lr=1.0, weight_decay=0.05, layer_decay=0.5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group['params']:
            name = names[parameter]
            layer, layers = model.get_layer_depth(name)
            assert group['lr_scale'] == 0.5 ** (layers - 1 - layer), name
            exempt = parameter.ndim == 1 or name in model.no_weight_decay()
            assert group['weight_decay'] == (0 if exempt else 0.05), name
            seen.add(name)
    assert seen == set(names.values())
    assert any('rpe_table' in name for name in model.no_weight_decay())


def test_meta_device() -> None:
    """Shapes without computation, in every dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        model = create(ALL_MIXERS, num_classes=3, device='meta', dtype=dtype)
        out = model(torch.empty(2, 3, 96, 64, device='meta', dtype=dtype))
        assert (out.shape, out.dtype) == ((2, 3), dtype)


@pytest.mark.parametrize('arch', [TINY, pytest.param(ALL_MIXERS, marks=pytest.mark.slow)])
def test_export(arch: dict, x: Tensor) -> None:
    model = create(arch, features_only=True)
    program = torch.export.export(model, (x,))
    for exported, eager in zip(program.module()(x), model(x), strict=True):
        torch.testing.assert_close(exported, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('arch', [ALL_MIXERS, V1])
def test_fx(arch: dict, x: Tensor) -> None:
    """torch.fx traces the model down to mixers, which it calls as they are."""
    model = create(arch)
    traced = create_feature_extractor(model, {'stages.1': 'stage', 'head': 'logits'})
    out = traced(x)
    torch.testing.assert_close(out['logits'], model(x))
    torch.testing.assert_close(out['stage'], model.forward_intermediates(x)[1][1])


BACKBONES = """
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

cfg = Config.fromfile('config.py')  # imports dat_pp, and mmpretrain as MMLab's own examples do
init_default_scope('mmdet')
detector = MODELS.build(cfg.model)
detector.init_weights()
backbone = detector.backbone.timm_model
print([tuple(out.shape[1:]) for out in detector.extract_feat(torch.zeros(1, 3, 64, 64))])
weights = torch.load('classifier.pth')
print(all(torch.equal(value, weights[name]) for name, value in backbone.model.state_dict().items()))

import mmseg.models

segmentor_backbone = MODELS.build(dict(type='mmseg.TIMMBackbone', **cfg.timm))
print([tuple(out.shape[1:]) for out in segmentor_backbone(torch.zeros(1, 3, 64, 64))])
classifier_backbone = MODELS.build(dict(type='mmpretrain.TIMMBackbone', model_name='dat_t'))
print([tuple(out.shape[1:]) for out in classifier_backbone(torch.zeros(1, 3, 64, 64))])
"""
DETECTOR = """
custom_imports = dict(imports=['dat_pp', 'mmpretrain.models', 'mmdet.models'])
timm = dict(
    model_name='dat_t_pp',
    features_only=True,
    out_indices=(1, 2, 3),
    pretrained=True,
    pretrained_cfg_overlay=dict(file='classifier.pth'),
)
model = dict(
    type='RetinaNet',
    backbone=dict(type='mmpretrain.TIMMBackbone', **timm),
    neck=dict(type='FPN', in_channels=[128, 256, 512], out_channels=8, num_outs=3),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=2,
        in_channels=8,
        feat_channels=8,
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], scales=[4.0], strides=[8, 16, 32]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss'),
        loss_bbox=dict(type='L1Loss'),
    ),
)
"""


@pytest.mark.slow
def test_backbones_of_mmlab(tmp_path: Path) -> None:
    """``TIMMBackbone`` of mmpretrain, in one of its models and in mmdet, and of mmseg."""
    torch.save(
        dat_pp.create_model('dat-t++', num_classes=3).state_dict(), tmp_path / 'classifier.pth'
    )
    (tmp_path / 'config.py').write_text(DETECTOR)
    (tmp_path / 'build.py').write_text(BACKBONES)
    done = python(tmp_path, 'build.py')
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(('[', 'True', 'False'))]
    assert lines == [
        '[(8, 8, 8), (8, 4, 4), (8, 2, 2)]',
        'True',
        '[(128, 8, 8), (256, 4, 4), (512, 2, 2)]',
        '[(768, 2, 2)]',
    ]

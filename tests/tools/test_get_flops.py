"""get_flops.py: golden numbers, mmengine's count of the same models, mistakes."""

import importlib.util
import os
from argparse import Namespace
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from dat_pp.engine import flops
from dat_pp.engine.config import read_config
from dat_pp.engine.errors import run_main

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
# Parameters and GMACs at the model's own size.
CLASSIFIERS = {
    'dat-pp-tiny_32xb128_in1k': (23_962_876, 4.29),
    'dat-pp-small_32xb128_in1k': (53_127_366, 9.43),
    'dat-pp-base_64xb64_in1k': (93_690_640, 16.56),
    'dat-pp-base_64xb24_in1k-384px': (93_690_640, 49.73),
    'dat-tiny_32xb128_in1k': (28_319_138, 4.59),
    'dat-small_32xb128_in1k': (49_700_402, 9.01),
    'dat-base_32xb128_in1k': (87_881_632, 15.79),
    'dat-base_64xb24_in1k-384px': (88_178_272, 49.77),
    'dat-pp-tiny-plain_32xb128_in1k': (22_772_796, 4.05),
}


def some_slow(names: Iterable[str], fast: Sequence[str]) -> list:
    """Parameters of which all but ``fast`` are slow."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


def _read(name: str) -> Config:
    return read_config(Namespace(config=str(CONFIGS / f'{name}.py'), cfg_options=None))


@pytest.mark.parametrize('name', some_slow(CLASSIFIERS, fast=['dat-pp-tiny_32xb128_in1k']))
def test_classifiers(name: str) -> None:
    found = flops.measure(_read(f'imagenet/{name}'))
    params, gflops = CLASSIFIERS[name]
    assert found.total_params == params
    assert round(found.total_flops / 1e9, 2) == gflops
    assert found.shape == ((384, 384) if '384px' in name else (224, 224))


def test_parts_of_mask_rcnn() -> None:
    """The heads of Mask R-CNN, calculated by hand."""
    found = flops.measure(_read('coco/mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco'))
    assert found.shape == (800, 1280)
    conv = 3 * 3 * 256 * 256
    pixels = 200 * 320 + 100 * 160 + 50 * 80 + 25 * 40 + 13 * 20
    rpn = pixels * (conv + 256 * (3 * 1 + 3 * 4))
    box = 1000 * (256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * (81 + 80 * 4))
    mask = 100 * (14 * 14 * (4 * conv + 2 * 2 * 256 * 256) + 28 * 28 * 256 * 80)
    assert found.flops['heads'] == rpn + box + mask
    classifier = CLASSIFIERS['dat-pp-tiny_32xb128_in1k'][0] - 513 * 1000
    norms = 2 * (64 + 128 + 256)  # of the other three outputs
    assert found.params['backbone'] == classifier + norms
    assert sum(found.flops.values()) == found.total_flops


class _Tensors(nn.Module):
    """A detector or segmentor as a function of an image alone, as mmengine's counter needs it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        shape = tuple(int(side) for side in image.shape[-2:])
        sample = BaseDataElement(metainfo=dict(img_shape=shape, batch_input_shape=shape))
        if hasattr(self.model, 'rpn_head'):
            out = self.model.extract_feat(image)
        elif hasattr(getattr(self.model, 'decode_head', None), 'pixel_decoder'):
            out = self.model.decode_head(self.model.extract_feat(image), [sample])
        else:
            out = self.model(image, [sample], mode='tensor')
        leaves = torch.utils._pytree.tree_leaves(out)
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


# Small enough to be run by mmengine's counter.
SHORT = {
    'model.backbone.arch': dict(_delete_=True, base='dat-t++', mixers=['ND', 'ND', 'ND', 'DD'])
}
SMALL = {
    'digits/classification': ((48, 48), {}),
    'digits/upernet': ((96, 64), {}),
    'digits/mask-rcnn': ((96, 64), {}),
    'coco/dino-5scale_dat-pp-t_8xb2-12e_coco': (
        (128, 192),
        {**SHORT, 'model.num_queries': 100, 'model.encoder.num_layers': 2},
    ),
    'ade20k/dat-pp-tiny_mask2former_8xb2-160k_ade20k-512x512': ((64, 96), SHORT),
}


@pytest.mark.parametrize('name', some_slow(SMALL, fast=[n for n in SMALL if 'digits' in n]))
def test_same_as_mmengine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, options = SMALL[name]
    cfg = _read(name)
    cfg.merge_from_dict({**deepcopy(options), 'model.backbone.init_cfg': None})
    found = flops.measure(cfg, shape)
    monkeypatch.setenv('DAT_PP_BACKEND', 'reference')
    model = _Tensors(MODELS.build(cfg.model)).eval()
    with torch.no_grad():
        analyzer = FlopAnalyzer(model, (torch.zeros(1, 3, *shape),))
        # mmengine leaves out attention with a mask.
        analyzer.set_op_handle('aten::baddbmm', _baddbmm)
        analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        total = analyzer.total()
    counted = found.total_flops
    if name == 'digits/mask-rcnn':
        counted -= found.flops['heads']
    # mmengine rounds an einsum to four digits.
    assert counted == pytest.approx(total, rel=1e-4)
    assert found.total_params == sum(p.numel() for p in model.parameters())


def _baddbmm(inputs: list, outputs: list) -> int:
    batch, rows, inner = inputs[1].type().sizes()
    return batch * rows * inner * inputs[2].type().sizes()[-1]


@pytest.mark.parametrize('backend', [None, 'blocked'])
def test_reference_backend_is_counted(backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('DAT_PP_BACKEND', raising=False)
    cfg = _read('digits/classification')
    expected = flops.measure(cfg).flops
    if backend:
        monkeypatch.setenv('DAT_PP_BACKEND', backend)
    assert flops.measure(cfg).flops == expected
    assert os.environ.get('DAT_PP_BACKEND') == backend


def test_output(capsys: pytest.CaptureFixture) -> None:
    flops.main([str(CONFIGS / 'digits' / 'upernet.py'), '--shape', '96'])
    title, _, head, *rows = capsys.readouterr().out.splitlines()
    assert title.endswith('upernet.py at 96 x 96')
    assert head.split() == ['params', '(M)', 'FLOPs', '(G)']
    assert [row.split()[0] for row in rows[:4]] == ['backbone', 'neck', 'heads', 'all']
    assert any(row.startswith('FLOPs: MACs per image') for row in rows)
    assert any('Auxiliary heads' in row for row in rows)


def test_feature_map_of_one_row() -> None:
    """The last feature map has a single row of several columns."""
    assert flops.measure(_read('digits/classification'), (32, 64)).total_flops > 0


def test_default_shapes() -> None:
    shapes = {'mask-rcnn': (800, 1280), 'upernet': (512, 2048), 'classification': (48, 48)}
    for name, shape in shapes.items():
        assert flops.default_shape(_read(f'digits/{name}')) == shape


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['no-such.py'], 'no such file: no-such.py'),
        (['digits/upernet.py', '--shape', '0', '96'], '--shape: give a height and a width'),
        (['digits/upernet.py', '--shape', '1', '2', '3'], '--shape: give a height and a width'),
        (['digits/_base_/dat.py'], 'not a classifier, detector or segmentor'),
        (
            ['digits/classification.py', '--cfg-options', 'test_dataloader=None'],
            'no image size in test_dataloader; give --shape',
        ),
        (
            ['digits/upernet.py', '--cfg-options', 'model.decode_head.in_channels=[1,2,3,4]'],
            'cannot run at 512 x 2048',
        ),
        (['digits/upernet.py', '--cfg-options', 'model.backbone.arch=x'], "unknown arch 'x'"),
    ],
)
def test_mistakes(arguments: list[str], expected: str, capsys: pytest.CaptureFixture) -> None:
    name, *options = arguments
    name = str(CONFIGS / name) if '/' in name else name
    assert run_main(flops.main, [name, *options]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert expected in line
    assert not out


def test_missing_library(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    config = CONFIGS / 'digits' / 'mask-rcnn.py'
    assert run_main(flops.main, [str(config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs 'mmdet', which is not installed" in line

"""tools/explain.py, as users start it and with what they get wrong."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from fresh import python
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from tiny_models import TINY, build

from dat_pp import catalog
from dat_pp.engine.errors import run_main
from dat_pp.explain import run as tool
from dat_pp.explain import trace
from dat_pp.explain.sources import ConfigSource, image_size, load_source, read_rgb

ROOT = Path(__file__).resolve().parents[2]
FILES = ['heat.png', 'points.png', 'queries.png', 'trace.npz']
CONFIG = f"""
_base_ = ['mmpretrain::_base_/default_runtime.py']
model = dict(type='ImageClassifier', backbone=dict(type='DAT', arch={TINY}, out_indices=(3,)),
             data_preprocessor=dict(num_classes=2, mean=[128] * 3, std=[64] * 3, to_rgb=True),
             neck=dict(type='GlobalAveragePooling'),
             head=dict(type='LinearClsHead', num_classes=2, in_channels=32))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]))
custom_imports = dict(imports=['dat_pp'])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config, weights for it and two images, one of them in a folder."""
    (tmp_path / 'tiny.py').write_text(CONFIG)
    (tmp_path / 'images').mkdir()
    for path, size in (('a.png', (60, 40)), ('images/a.jpg', (50, 70))):
        pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / path)
    torch.save(build(TINY).state_dict(), tmp_path / 'weights.pth')
    return tmp_path


@pytest.fixture
def explain(
    folder: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable:
    """Run the tool in ``folder``; returns its exit code, output and errors."""
    monkeypatch.chdir(folder)

    def call(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run_main(tool.main, [*argv, '--out-dir', 'out'])
        return code, *capfd.readouterr()

    return call


def written(folder: Path) -> list[str]:
    out = folder / 'out'
    return sorted(str(p.relative_to(out)) for p in out.rglob('*') if p.is_file())


def test_images_of_a_config(explain, folder):
    weights = 'tiny.py', '--weights', 'weights.pth', '--blocks', '0.1'
    code, out, errors = explain('a.png', 'images', '--query', '3,4.5', '--model', *weights)
    assert (code, errors) == (0, '')
    assert out.splitlines()[-3:] == [
        'out/a: points.png, queries.png, heat.png, trace.npz',
        'out/a-2: points.png, queries.png, heat.png, trace.npz',
        'out/explorer.html',
    ]
    assert written(folder) == [
        *(f'{name}/{file}' for name in ('a-2', 'a') for file in FILES),
        'explorer.html',
    ]
    page = (folder / 'out' / 'explorer.html').read_text(encoding='utf-8')
    info = json.loads(re.search(r'id="info">(.*)</script>', page)[1])
    assert [(image['name'], image['query']) for image in info['images']] == [
        ('a.png', [3, 4.5]),
        ('a.jpg', [3, 4.5]),
    ]
    assert info['images'][0]['shown'] == '0.1'
    with np.load(folder / 'out' / 'a' / 'trace.npz') as file:
        assert file['size'].tolist() == [40, 60]
        assert file['queries'].tolist() == [[3, 4.5]]
        source = load_source('tiny.py', 'weights.pth')
        expected = source.trace(folder / 'a.png', read_rgb(folder / 'a.png'))
        positions = expected.block('2.1').positions_in_pixels[0]
        np.testing.assert_allclose(file['2.1/positions_in_pixels'], positions, atol=1e-4)


def test_weights_are_loaded_and_the_image_is_normalized(folder):
    """The trace of the tool is that of the backbone on the preprocessed image."""
    path = folder / 'a.png'
    found = load_source(str(folder / 'tiny.py'), str(folder / 'weights.pth')).trace(
        path, read_rgb(path)
    )
    pixels = np.asarray(Image.open(path).convert('RGB'))
    resized = mmcv.imresize(pixels, (64, 64))
    image = (torch.from_numpy(resized.copy()).permute(2, 0, 1)[None].float() - 128) / 64
    for block, expected in zip(found.deformable, trace(build(TINY), image).deformable, strict=True):
        torch.testing.assert_close(block.positions, expected.positions)
    assert found.images[0].scale == pytest.approx((64 / 40, 64 / 60))


@pytest.mark.parametrize('name', ['dat-t', 'dat_b_384'])
def test_published_preprocessing_of_a_plain_model(name, monkeypatch):
    """Squashed to a square, whose central crop is the input; without any MMLab library."""
    side, resized = (384, 438) if '384' in name else (224, 256)
    monkeypatch.setattr('dat_pp.explain.sources.create_model', lambda *_, **__: build(TINY))
    source = load_source(name, None)
    seen = []
    source.model.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rgb = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    found = source.trace(Path('a.png'), rgb)
    assert not source.trained
    (image,) = seen
    whole = Image.fromarray(rgb).resize((resized, resized), Image.Resampling.BICUBIC)
    start = (resized - side) // 2
    crop = torch.from_numpy(np.array(whole)[start : start + side, start : start + side]) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(image[0].permute(1, 2, 0), (crop - mean) / std)
    top, _, _, right = found.images[0].seen
    assert top == pytest.approx(start * 90 / resized - 0.5)
    assert right == pytest.approx((start + side) * 120 / resized - 0.5)


def test_random_weights_are_named(explain, folder):
    code, _, errors = explain('a.png', '--model', 'tiny.py', '--blocks', '2.1', '--format', 'svg')
    assert code == 0
    assert errors == 'note: random weights show nothing a model learned; give --weights\n'
    assert b'>a.png, tiny (random weights)<' in (folder / 'out/a/points.svg').read_bytes()


def test_detections_are_asked_about():
    """The centers (y, x) of confident detections, the best first."""
    found = InstanceData(
        bboxes=torch.tensor([[0.0, 10, 20, 30], [40, 40, 60, 80], [0, 0, 2, 2]]),
        scores=torch.tensor([0.5, 0.9, 0.1]),
        labels=torch.tensor([0, 1, 0]),
    )
    model = SimpleNamespace(test_step=lambda _: [SimpleNamespace(pred_instances=found)])
    source = ConfigSource(model, 'm', True, pipeline=lambda results: results, whole=True)
    source.classes = ('cat', 'dog')
    predictions = source.predictions(Path('a.png'))
    assert predictions.centers == [(60, 50), (20, 10)]
    assert [item.label for item in predictions.items] == ['dog', 'cat']
    source.whole = False  # heads without weights
    assert source.predictions(Path('a.png')).items == []


MISTAKES = {
    'no image': ('none.png', 'image: no such file or folder: none.png'),
    'no image in a folder': ('empty', 'image: no images in the folder empty (.bmp, .gif'),
    'not an image': ('tiny.py', 'image: cannot read tiny.py: cannot identify image file'),
    'query of letters': ('a.png --query a,b', '--query: expected Y,X in pixels of the image, got'),
    'query outside': (
        'a.png --query 3,4 40,4',
        '--query: (40, 4) is outside of a.png, 40 x 60 pixels',
    ),
    'query outside of one image': (
        'a.png images --query 3,55',
        '--query: (3, 55) is outside of images/a.jpg, 70 x 50 pixels',
    ),
    'block that is not deformable': (
        'a.png --blocks 2.0',
        'image a.png: block 2.0 is neighborhood attention, not deformable attention; deformable: ',
    ),
    'missing block': ('a.png --blocks 2.9', "image a.png: no block '2.9'; there are 0.0, 0.1"),
    'missing model': ('a.png --model dat-q++', "--model: unknown model 'dat-q++'; did you mean "),
    'weights of another model': (
        'a.png --model tiny.py --weights other.pth',
        '--weights: checkpoint other.pth',
    ),
    'missing weights': (
        'a.png --model tiny.py --weights none.pth',
        '--weights: no such file: none.pth',
    ),
    'missing weights of a plain model': (
        'a.png --model dat-t --weights none.pth',
        '--weights: no such file: none.pth',
    ),
    'no backbone': (
        'a.png --model resnet.py',
        'config resnet.py: no DAT backbone in this ImageClassifier',
    ),
    'no pipeline': (
        'a.png --model bare.py',
        'config bare.py: needs a model and a pipeline in test_dataloader.dataset',
    ),
    'missing library': (
        'a.png --model missing.py',
        "config missing.py: needs 'mmseg', which is not installed: pip install",
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistake_is_one_line(mistake, explain, folder, monkeypatch):
    text, expected = MISTAKES[mistake]
    argv = text.split()
    (folder / 'empty').mkdir()
    other = dict(TINY, mixers=['NN', 'ND', 'ND', 'DD'])
    torch.save(build(other).state_dict(), folder / 'other.pth')
    backbone = "type='ResNet', depth=18"
    resnet = CONFIG.replace(f"type='DAT', arch={TINY}, out_indices=(3,)", backbone)
    (folder / 'resnet.py').write_text(resnet)
    (folder / 'bare.py').write_text(CONFIG.replace('test_dataloader', 'other'))
    (folder / 'missing.py').write_text("default_scope = 'mmseg'\n")
    if mistake == 'missing library':
        monkeypatch.setattr('importlib.util.find_spec', lambda _: None)
    if '--model' not in argv:
        argv += ['--model', 'tiny.py', '--weights', 'weights.pth']
    code, out, errors = explain(*argv)
    assert (code, out, len(errors.splitlines())) == (2, '', 1), errors
    assert errors.startswith(f'error: {expected}')
    assert not written(folder)


def test_photograph_is_turned_upright(folder):
    """As OpenCV reads it: the orientation that a camera notes."""
    path = folder / 'turned.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / 'a.png').save(path, exif=exif, quality=100, subsampling=0)
    rgb = read_rgb(path)
    assert image_size(path) == rgb.shape[:2] == (60, 40)
    assert image_size(folder / 'a.png') == (40, 60)
    assert np.abs(rgb.astype(int) - mmcv.imread(str(path))[..., ::-1]).max() <= 3
    assert load_source(str(folder / 'tiny.py'), None).trace(path, rgb).images[0].size == (60, 40)


def test_page_that_is_too_small(explain, folder):
    weights = '--model', 'tiny.py', '--weights', 'weights.pth', '--blocks', '2.1'
    code, _, errors = explain('a.png', *weights, '--page-mb', '0.001')
    assert (code, errors) == (2, 'error: --page-mb: no image fits in a page of 0.001 MB\n')
    assert written(folder) == [f'a/{file}' for file in FILES]


def test_existing_files_are_kept(explain, folder):
    (folder / 'out' / 'a').mkdir(parents=True)
    (folder / 'out' / 'a' / 'heat.png').write_text('mine')
    argv = 'a.png', '--model', 'tiny.py', '--weights', 'weights.pth', '--blocks', '0.1'
    code, out, errors = explain(*argv)
    assert (code, out) == (2, '')
    assert errors == 'error: --out-dir: out/a/heat.png exists; --overwrite replaces it\n'
    assert written(folder) == ['a/heat.png']
    assert explain(*argv, '--overwrite')[0] == 0
    assert written(folder) == [*(f'a/{file}' for file in FILES), 'explorer.html']
    assert (folder / 'out' / 'a' / 'heat.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
def test_detector_in_a_fresh_process(folder):
    """The whole command for a detector, from another folder, with the weights of all its parts."""
    cfg = Config.fromfile(catalog.config('digits/mask-rcnn'))
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'detector.pth')
    argv = ['a.png', '--model', 'digits/mask-rcnn', '--weights', 'detector.pth', '--out-dir', 'out']
    done = python(folder, ROOT / 'tools' / 'explain.py', *argv)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == 'out/a: points.png, queries.png, heat.png, trace.npz\nout/explorer.html\n'
    assert written(folder) == [*(f'a/{file}' for file in FILES), 'explorer.html']


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'cv2'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Blocked())
from dat_pp.explain import run
from dat_pp.engine.errors import run_main
sys.exit(run_main(run.main, sys.argv[1:]))
"""


@pytest.mark.slow
def test_plain_model_needs_no_mmlab(folder):
    argv = ['a.png', '--model', 'dat-t++', '--out-dir', 'out', '--blocks', '2.1']
    done = python(folder, '-c', BLOCKED, *argv)
    assert done.returncode == 0, done.stderr
    assert written(folder) == [*(f'a/{file}' for file in FILES), 'explorer.html']


def test_import_needs_torch_alone(folder):
    code = (
        'import sys, dat_pp; dat_pp.explain.trace; '
        "print(sorted({'matplotlib', 'PIL', 'cv2', 'mmcv'} & sys.modules.keys()))"
    )
    done = python(folder, '-c', code)
    assert done.stdout == '[]\n', done.stderr

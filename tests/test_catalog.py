"""Configs and models by name, and what ``import dat_pp`` loads."""

import os
import shutil
from pathlib import Path

import pytest
from fresh import python

import dat_pp
from dat_pp import catalog

ROOT = Path(__file__).parents[1]
MASK_RCNN = 'coco/mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco'


@pytest.mark.parametrize(
    'name',
    [
        MASK_RCNN,
        f'{MASK_RCNN}.py',
        MASK_RCNN.removeprefix('coco/'),
        MASK_RCNN.replace('-', '_'),
        MASK_RCNN.removeprefix('coco/').replace('-', '_') + '.py',
    ],
)
def test_config(name: str) -> None:
    path = dat_pp.config(name)
    assert isinstance(path, str)  # mmengine takes no other type in _base_
    assert os.path.samefile(path, ROOT / 'configs' / f'{MASK_RCNN}.py')


def test_fragment() -> None:
    """Below _base_ the folder is part of the name: mask-rcnn is the config of the digits."""
    fragment = ROOT / 'configs' / '_base_' / 'coco' / 'mask-rcnn.py'
    assert os.path.samefile(dat_pp.config('_base_/coco/mask-rcnn'), fragment)
    digits = ROOT / 'configs' / 'digits' / 'mask-rcnn.py'
    assert os.path.samefile(dat_pp.config('mask-rcnn'), digits)


@pytest.mark.parametrize(
    ('name', 'near'),
    [
        ('digits/clasification', 'digits/classification'),
        ('coco/mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x', MASK_RCNN),
        ('retinanet_dat-pp-s_fpn_32xb2-amp-ms-crop-2x_coco', 'coco/retinanet_dat-pp-s_fpn_32xb2-'),
        ('dat-pp-tiny_32xb128', 'imagenet/dat-pp-tiny_32xb128_in1k'),
    ],
)  # fmt: skip
def test_misspelled_config(name: str, near: str) -> None:
    with pytest.raises(ValueError, match='dat_pp has no config') as error:
        dat_pp.config(name)
    assert f"'{name}'; near: {near}" in str(error.value)
    assert str(error.value).count(', ') <= 4


def test_unknown_config() -> None:
    with pytest.raises(ValueError, match=r"^dat_pp has no config 'quark'$"):
        dat_pp.config('quark')


def test_ambiguous_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ('one', 'two'):
        path = tmp_path / 'configs' / folder / 'same.py'
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setattr(catalog, 'root', lambda: tmp_path)
    with pytest.raises(ValueError, match='several configs') as error:
        dat_pp.config('same')
    assert str(error.value).endswith('near: one/same, two/same')
    assert dat_pp.config('two/same') == str(path)


def test_models_of_each_library() -> None:
    """Together they are the model index; each has a config, whose folder decides."""
    names = {library: {m['Name'] for m in catalog.models(library)} for library in SIZES}
    assert {library: len(found) for library, found in names.items()} == SIZES
    assert {'mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco', 'digits-mask-rcnn'} < names['mmdet']
    for library in names:
        for model in catalog.models(library):
            assert Path(model['Config']).is_file()
            assert model['Weights'] is None or model['Weights'].startswith('https://')


def count(folder: str) -> int:
    return len(list((ROOT / 'configs' / folder).glob('*.py')))


# Each folder's configs, and one of the digits.
SIZES = {
    library: count(folder) + 1
    for library, folder in (('mmpretrain', 'imagenet'), ('mmdet', 'coco'), ('mmseg', 'ade20k'))
}


def test_plain_checkout(tmp_path: Path) -> None:
    """On PYTHONPATH without installation, configs are found beside ``projects``.

    What mmengine looks up in the package itself, its hub and its lazy form, is not.
    """
    ignored = shutil.ignore_patterns('.mim', '__pycache__', 'configs', '*.png')
    package = tmp_path / 'checkout' / 'projects' / 'dat_pp'
    shutil.copytree(ROOT / 'projects' / 'dat_pp', package, ignore=ignored)
    shutil.copytree(ROOT / 'configs', tmp_path / 'checkout' / 'configs')
    shutil.copy(ROOT / 'model-index.yml', tmp_path / 'checkout')
    (tmp_path / 'mine.py').write_text("_base_ = 'dat_pp::digits/upernet'\n")
    (tmp_path / 'lazy.py').write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n    from dat_pp.configs.digits.upernet import *\n'
    )
    code = (
        'import dat_pp; from mmengine.config import Config\n'
        "print(dat_pp.config('digits/upernet'))\n"
        "print(Config.fromfile('mine.py').model.type, len(dat_pp.catalog.models('mmseg')))\n"
        'from mmengine.hub import get_config\n'
        "for read, name in ((Config.fromfile, 'lazy.py'), (get_config, 'dat_pp::digits/a.py')):\n"
        '    try: read(name)\n'
        '    except Exception as error: print(type(error).__name__)'
    )
    done = python(tmp_path, '-c', code, path=str(package.parent))
    assert done.returncode == 0, done.stderr[-2000:]
    path, built, *errors = done.stdout.splitlines()
    assert path == str(tmp_path / 'checkout' / 'configs' / 'digits' / 'upernet.py')
    assert built == f'EncoderDecoder {SIZES["mmseg"]}'
    assert errors == ['ConfigParsingError', 'FileNotFoundError']


def test_copy_without_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, 'PACKAGE', tmp_path / 'projects' / 'dat_pp')
    with pytest.raises(FileNotFoundError, match='no configs of dat_pp in'):
        dat_pp.config('digits/upernet')
    assert catalog.models('mmpretrain') == []


@pytest.mark.parametrize('apis', ['class ModelHub: pass', ''])
def test_library_imports_beside_a_copy_without_configs(apis: str, tmp_path: Path) -> None:
    """So it does if its version has no ``ModelHub``."""
    for name, content in {'__init__': '', 'apis/__init__': '', 'apis/model': apis}.items():
        path = tmp_path / 'mmpretrain' / f'{name}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    if apis:
        ignored = shutil.ignore_patterns('.mim', '__pycache__')
        shutil.copytree(Path(dat_pp.__file__).parent, tmp_path / 'dat_pp', ignore=ignored)
    code = 'import dat_pp, mmpretrain.apis.model; print(dat_pp.__file__)'
    done = python(tmp_path, '-c', code, path=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (str(tmp_path) in done.stdout) == bool(apis)


def test_import_is_light(tmp_path: Path) -> None:
    """Neither the libraries nor what they bring, beyond what mmengine itself loads."""
    code = 'import sys; import mmengine.model, mmengine.runner; before = set(sys.modules)\n'
    code += 'import dat_pp; print(*{name.partition(".")[0] for name in set(sys.modules) - before})'
    done = python(tmp_path, '-c', code)
    assert done.returncode == 0, done.stderr[-2000:]
    heavy = {'mmpretrain', 'mmdet', 'mmseg', 'mmcv', 'triton', 'matplotlib', 'cv2', 'modelindex'}
    assert not heavy & set(done.stdout.split())

"""What is changed in mmengine: once, again after a reload, and not where it is unknown."""

import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace

import golden
import mmengine.config.utils
import pytest
import torch
from fresh import python
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config, get_model
from mmengine.infer import BaseInferencer
from mmengine.runner import load_checkpoint

import dat_pp
from dat_pp.compat import mmengine as changes


def replaced() -> list:
    """The functions in mmengine that stand for its own."""
    return [
        mmengine.config.utils.load,
        Config._get_cfg_path,
        BaseInferencer._get_models_from_metafile,
    ]


def test_changes_are_made_once() -> None:
    """A second application or a reload wraps mmengine's own function, not ours."""
    assert changes.SKIPPED == {}
    for repeat in (changes.apply, lambda: importlib.reload(changes)):
        repeat()
        for function in replaced():
            original = function._dat_pp_original
            assert original.__module__.startswith('mmengine.')
            assert not hasattr(original, '_dat_pp_original')
            assert inspect.unwrap(function) is original
    assert MODULE2PACKAGE['dat_pp'] == 'dat_pp'


@pytest.mark.slow
def test_changes_return_when_mmengine_is_reloaded(tmp_path: Path) -> None:
    code = (
        'import importlib, dat_pp, mmengine.config.config as c\n'
        'importlib.reload(c)\n'
        "print(c.Config.fromfile('mine.py').model.type)\n"
    )
    (tmp_path / 'mine.py').write_text("_base_ = 'dat_pp::digits/mask-rcnn.py'\n")
    done = python(tmp_path, '-c', code)
    assert done.stdout == 'MaskRCNN\n', done.stderr[-2000:]


@pytest.mark.slow
def test_unknown_version_is_left_alone(tmp_path: Path) -> None:
    """A reason instead of an error, and the names that need no change still resolve."""
    code = (
        "import mmengine; mmengine.__version__ = '0.11.0'\n"
        'from mmengine.config import Config; before = Config._get_cfg_path\n'
        'import dat_pp; from dat_pp.compat.mmengine import SKIPPED\n'
        'assert Config._get_cfg_path is before\n'
        "print(*SKIPPED, SKIPPED['_own_bases'])\n"
        "print(dat_pp.config('digits/upernet'))\n"
        "print(*dat_pp.upstream('mmseg::_base_/models/upernet_r50.py'))\n"
        "print(Config.fromfile(dat_pp.config('digits/upernet')).model.type)"
    )
    done = python(tmp_path, '-c', code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ''
    reason, config, base, model = done.stdout.splitlines()
    # Of the modules that are loaded.
    assert reason == '_known_packages _load_once _own_bases mmengine 0.11.0 is not known'
    assert Path(config).is_file()
    assert base.endswith('mmseg/.mim/configs/_base_/models/upernet_r50.py')
    assert model == 'EncoderDecoder'


@pytest.mark.parametrize(
    ('members', 'reason'),
    [
        (
            dict(_get_cfg_path=staticmethod(lambda name, config, extra: (name, None))),
            "takes ['name', 'config', 'extra'], not ['cfg_path', 'filename']",
        ),
        ({}, "has no attribute '_get_cfg_path'"),
    ],
)
def test_unknown_shape_is_left_alone(
    members: dict, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, 'SKIPPED', {})
    module = SimpleNamespace(Config=type('Config', (), members))
    before = vars(module.Config).get('_get_cfg_path')
    changes._guarded(changes._own_bases)(module)
    assert vars(module.Config).get('_get_cfg_path') is before
    assert reason in changes.SKIPPED['_own_bases']


def test_upstream_bases_keep_their_scope() -> None:
    """A segmentor is built in mmseg's scope, whatever the scope of the process."""
    cfg = Config.fromfile(dat_pp.config('digits/upernet'))
    assert cfg.model._scope_ == 'mmseg'
    assert cfg.default_scope == 'mmseg'


def test_own_bases_take_the_default_scope(tmp_path: Path) -> None:
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'dat_pp::digits/classification.py'\n")
    cfg = Config.fromfile(path)
    assert '_scope_' not in cfg.val_evaluator
    assert cfg.model._scope_ == 'mmpretrain'


def test_own_base_with_a_near_name(tmp_path: Path) -> None:
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'dat_pp::digits/classifcation.py'\n")
    with pytest.raises(ValueError, match=r'near: digits/classification(,|$)'):
        Config.fromfile(path)


@pytest.mark.parametrize('page', changes.SHARE_PAGES)
def test_share_page_as_a_checkpoint(page: str) -> None:
    """One line with the link, before anything is downloaded."""
    with pytest.raises(ValueError, match='share page') as error:
        load_checkpoint(torch.nn.Linear(1, 1), f'{page}f/0123/')
    assert str(error.value) == (
        f'{page}f/0123/ is a share page, which only a browser can open: save its file and give '
        'the path'
    )


def test_published_weights_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where to save the file; once it is there, pretrained=True reads it."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    config = 'dat_pp::imagenet/dat-pp-tiny_32xb128_in1k.py'
    path = tmp_path / 'hub' / 'checkpoints' / 'dat-pp-tiny_32xb128_in1k.pth'
    with pytest.raises(ValueError, match='save its file as') as error:
        get_model(config, pretrained=True)
    assert f'save its file as {path}, or' in str(error.value)
    assert get_config(config, pretrained=True).model_path in str(error.value)

    keys = golden.published_keys('imagenet_pp_tiny')
    weights = {name: torch.full((1,), 0.5).expand(key['shape']) for name, key in keys.items()}
    path.parent.mkdir(parents=True)
    torch.save({'model': weights}, path)
    model = get_model(config, pretrained=True)
    assert all(bool((value == 0.5).all()) for value in model.parameters())


def test_published_weights_are_on_known_share_pages() -> None:
    """Every link in the metafiles is refused with that line, none is downloaded as a page."""
    weights = [
        model['Weights']
        for library in ('mmpretrain', 'mmdet', 'mmseg')
        for model in dat_pp.catalog.models(library)
        if model['Weights']
    ]
    assert weights
    assert all(link.startswith(changes.SHARE_PAGES) for link in weights)

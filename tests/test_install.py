"""Configs and tools come with the package, from a wheel and from an editable install."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fresh import python
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

import dat_pp

ROOT = Path(__file__).parents[1]
DIGITS = ('classification', 'mask-rcnn', 'upernet')


@pytest.mark.parametrize('name', DIGITS)
def test_configs_are_found_by_package(name):
    cfg = get_config(f'dat_pp::digits/{name}.py')
    assert cfg.model.backbone.type == 'DAT'


def test_package_as_base(tmp_path):
    """A config of somebody else's project, built as the tools of mmpretrain build it."""
    config = tmp_path / 'mine.py'
    config.write_text(
        "_base_ = 'dat_pp::digits/classification.py'\nmodel = dict(head=dict(num_classes=3))\n"
    )
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, dat_pp.DAT)
    assert model.head.num_classes == 3


def test_tools_are_under_mim():
    folder = Path(dat_pp.__file__).parent / '.mim'
    assert (folder / 'tools' / 'train.py').is_file()
    assert (folder / 'configs' / 'digits').is_dir()


@pytest.fixture(scope='module')
def wheel_folder(tmp_path_factory):
    """An unpacked wheel, built from a copy since building leaves files in the source tree."""
    source = tmp_path_factory.mktemp('source') / 'dat_pp'
    ignored = shutil.ignore_patterns(
        '.git', '.venv', '.mim', 'build', '*.egg-info', 'data', 'work_dirs', '__pycache__', 'tests'
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-build-isolation', '--no-deps', '-w', '.']
    subprocess.run([*command, '.'], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob('*.whl')
    folder = source.parent / 'unpacked'
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.mark.slow
def test_wheel_holds_copies(wheel_folder):
    inside = wheel_folder / 'dat_pp' / '.mim'
    for name in ('configs', 'tools'):
        files = {
            path.relative_to(ROOT / name)
            for path in (ROOT / name).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts
        }
        copied = {p.relative_to(inside / name) for p in (inside / name).rglob('*') if p.is_file()}
        assert copied == files
        assert not (inside / name).is_symlink()
    (metadata,) = wheel_folder.glob('dat_pp-*.dist-info/METADATA')
    assert f'Version: {dat_pp.__version__}' in metadata.read_text()


@pytest.mark.slow
def test_wheel_resolves_its_own_configs(wheel_folder, tmp_path):
    """By name, through mmengine's hub, and in the lazy form, which has a file for every config."""
    lazy = wheel_folder / 'dat_pp' / 'configs'
    names = {path.relative_to(lazy).as_posix() for path in lazy.rglob('*.py')}
    configs = [path.relative_to(ROOT / 'configs') for path in (ROOT / 'configs').glob('[!_]*/*.py')]
    assert names == {path.as_posix().replace('-', '_') for path in configs}
    (tmp_path / 'mine.py').write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n    from dat_pp.configs.digits.mask_rcnn import *\n'
        'model.update(dict(backbone=dict(drop_path_rate=0.25)))\n'
    )
    code = (
        'from mmengine.config import Config\n'
        "cfg = Config.fromfile('mine.py')\n"
        'print(cfg.default_scope, cfg.model.backbone.drop_path_rate, cfg.model.backbone.type)\n'
        "cfg.dump('dumped.py')\n"
        "print(Config.fromfile('dumped.py').model.backbone == cfg.model.backbone)\n"
        'import dat_pp; from mmengine.hub import get_config\n'
        "cfg = get_config('dat_pp::digits/classification.py')\n"
        "print(dat_pp.__file__, cfg.filename, dat_pp.config('digits/classification'), sep='\\n')\n"
    )
    done = python(tmp_path, '-c', code, path=str(wheel_folder))
    assert done.returncode == 0, done.stderr[-2000:]
    *lazy_lines, package, hub, by_name = done.stdout.splitlines()
    assert lazy_lines == ['mmdet 0.25 DAT', 'True']
    assert Path(package).is_relative_to(wheel_folder)
    assert Path(hub).is_relative_to(wheel_folder)
    assert os.path.samefile(hub, by_name)


@pytest.mark.parametrize(
    ('variable', 'expected'), [('PYTHON', 'Python 3.11 not found'), ('CXX', 'no C++ compiler')]
)
def test_install_names_what_is_missing(variable, expected, tmp_path):
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    # PYTHON has to be a 3.11 to come as far as the compiler.
    python = sys.executable if sys.version_info[:2] == (3, 11) else 'python3.11'
    env = {**os.environ, 'PYTHON': python, variable: '/none'}
    command = ['bash', tmp_path / 'requirements' / 'install.sh']
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert expected in line
    assert not (tmp_path / '.venv').exists()


@pytest.mark.slow
def test_install_names_the_step_that_failed(tmp_path):
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    (tmp_path / 'requirements' / 'build.txt').write_text('./no-such-package.whl\n')
    command = ['bash', tmp_path / 'requirements' / 'install.sh']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "step 'build-tools' failed" in line
    assert 'no-such-package.whl' in line
    assert (tmp_path / '.venv' / 'logs' / '1-build-tools.log').is_file()

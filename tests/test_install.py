"""The editable install finds configs and tools; the script that makes the environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
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

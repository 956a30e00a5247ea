"""The package in a project outside this repository, and with one of the libraries alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mmengine
import pytest
from families import DEPTH, FAMILIES
from real_layouts import write_ade20k, write_coco, write_imagenet

import dat_pp

ROOT = Path(__file__).parents[2]
PROJECT = Path(__file__).parent / 'elsewhere'
# Cases of the project: what its model and head are.
CASES = {
    'inherited': dict(model='MaskRCNN'),
    'own_detector': dict(model='TwiceRetinaNet'),
    'own_head': dict(model='EncoderDecoder', head='LastLevelHead'),
    'fine_tuned': dict(model='ImageClassifier', marked=True),
    'loaded': dict(model='ImageClassifier', marked=True),
}
# What runs with one library alone; what does not, and the library that is named then.
ALONE = {
    'mmpretrain': ('classification 384', {'Mask R-CNN': 'mmdet', 'UperNet': 'mmseg'}),
    'mmdet': ('RetinaNet', {'classification 224': 'mmpretrain'}),
    'mmseg': ('Semantic FPN', {'Mask2Former ADE20K': 'mmdet'}),
}


def write_data(folder: Path) -> None:
    write_imagenet(folder / 'data' / 'imagenet', (80, 80))
    write_imagenet(folder / 'data' / 'flowers', (80, 80), classes=3)
    write_coco(folder / 'data' / 'coco', (96, 96))
    write_ade20k(folder / 'data' / 'ade', (80, 80))


def python(cwd: Path, *argv: str | Path, path: str = '') -> subprocess.CompletedProcess:
    """Python in ``cwd``, which has nothing of this repository but the installed package."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': path}
    env.pop('DAT_PP_TRACEBACK', None)
    command = [sys.executable, *map(str, argv)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope='module')
def results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What became of each case: the loss and the types, or a traceback."""
    folder = tmp_path_factory.mktemp('project') / 'elsewhere'
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns('__pycache__'))
    write_data(folder)
    done = python(folder, 'train_all.py', *CASES)
    written = folder / 'results.json'
    assert written.exists(), done.stderr[-3000:]
    return json.loads(written.read_text())


@pytest.mark.parametrize('case', CASES)
def test_project_elsewhere(case: str, results: dict) -> None:
    """Its config is built and trains one step, from the checkpoint if there is one."""
    result = results[case]
    assert 'error' not in result, result['error']
    assert 0 < result['loss'] < 100
    assert result['ours']
    expected = CASES[case]
    assert {key: result[key] for key in expected} == expected


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('alone')
    write_data(folder)
    return folder


@pytest.fixture(params=ALONE)
def alone(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A library, and a path with everything that is installed but the other two."""
    packages, links = Path(mmengine.__file__).parents[1], tmp_path / 'packages'
    links.mkdir()
    others = [name for name in ALONE if name != request.param]
    # Also the metadata: distributions are called mmdetection or onedl-mmdetection, say.
    hidden = tuple(f'{prefix}{name}' for name in others for prefix in ('', 'onedl_'))
    for entry in packages.iterdir():
        if not entry.name.startswith(hidden) and entry.suffix != '.pth':
            (links / entry.name).symlink_to(entry)
    return request.param, os.pathsep.join([str(links), str(Path(dat_pp.__file__).parents[1])])


def test_one_library_alone(alone: tuple[str, str], folder: Path, tmp_path: Path) -> None:
    """Its configs are trained and tested; one line says what the others need."""
    library, path = alone
    runs, lacking = ALONE[library]
    check = 'import sys, importlib.util as u; print(*map(u.find_spec, sys.argv[1:]))'
    others = [name for name in ALONE if name != library]
    assert python(folder, '-S', '-c', check, *others, path=path).stdout == 'None None\n'

    def tool(script: str, name: str, *argv: str | Path) -> subprocess.CompletedProcess:
        family = FAMILIES[name]
        options = ['--cfg-options', *family.options(1, DEPTH), 'load_from=None']
        config = ROOT / 'configs' / f'{family.config}.py'
        command = [ROOT / 'tools' / f'{script}.py', config, *argv, '--work-dir', tmp_path / 'work']
        return python(folder, '-S', *command, *options, path=path)

    done = tool('train', runs, '--no-validate')
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = (tmp_path / 'work' / 'last_checkpoint').read_text()
    done = tool('test', runs, checkpoint)
    assert done.returncode == 0, done.stderr[-3000:]
    assert FAMILIES[runs].metrics[0] in done.stdout

    for name, needed in lacking.items():
        done = tool('train', name)
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
        assert f"needs '{needed}', which is not installed" in line
        assert 'pip install' in line

"""Our configs in a project outside this repository, with the tools that the libraries ship.

Each test starts fresh processes, in which nothing has imported ``dat_pp`` before.
"""

import json
import os
import shutil
from pathlib import Path

import mmengine
import pytest
import torch
from families import DEPTH, FAMILIES, REPEATED
from fresh import python, upstream_tool
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from real_layouts import write_ade20k, write_coco, write_imagenet

import dat_pp

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROJECT = Path(__file__).parent / 'elsewhere'
MARK = 5.0
NO_VALIDATION = 'val_cfg=None val_dataloader=None val_evaluator=None'
ONE_PROCESS = ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
FEW_BLOCKS = [f'model.backbone.arch.{key}' for key in ('base=dat-t++', 'mixers=[N,D,N,D]')]
CLASSIFIER = [*ONE_PROCESS, 'model.backbone.arch._delete_=True', *FEW_BLOCKS]
SMALL = dict(
    mask_rcnn=FAMILIES['Mask R-CNN'].options(1, DEPTH),
    fpn=FAMILIES['Semantic FPN'].options(1, DEPTH),
    retinanet=[*CLASSIFIER, 'train_dataloader.dataset.pipeline.2.scale=(64,64)'],
    classifier=CLASSIFIER,
)
# Config of the project -> the library whose train.py runs it, what makes it small, and whether the
# backbone starts from the marked checkpoint.
CASES = {
    'inherited': ('mmdet', 'mask_rcnn', False),
    'lazy': ('mmdet', 'mask_rcnn', False),
    'own_detector': ('mmdet', 'retinanet', False),
    'own_head': ('mmseg', 'fpn', False),
    'fine_tuned': ('mmpretrain', 'classifier', True),
    'loaded': ('mmpretrain', 'classifier', True),
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


def write_classifier(folder: Path) -> None:
    """A checkpoint of a classifier with 1000 classes, its backbone marked."""
    cfg = Config.fromfile(dat_pp.config('dat-pp-tiny_32xb128_in1k'))
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.arch = dict(base='dat-t++', mixers=['N', 'D', 'N', 'D'])
    model = MODELS.build(cfg.model)
    torch.nn.init.constant_(model.backbone.stem.conv1.bias, MARK)
    torch.save({'state_dict': model.state_dict()}, folder / 'classifier.pth')


@pytest.fixture(scope='module')
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of a user, with data."""
    folder = tmp_path_factory.mktemp('project') / 'elsewhere'
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns('__pycache__'))
    write_data(folder)
    write_classifier(folder)
    return folder


@pytest.mark.parametrize('case', CASES)
def test_upstream_train_and_test(case: str, project: Path, tmp_path: Path) -> None:
    """One step with the library's own train.py, then its test.py on the result."""
    if case == 'lazy' and not (Path(dat_pp.__file__).parent / 'configs').is_dir():
        pytest.skip('installed before the lazy configs were: pip install -e . writes them')
    library, small, marked = CASES[case]
    options = [*SMALL[small], *REPEATED.format(lr=1e-5).split()]
    options += ['train_dataloader.batch_size=2', 'default_hooks.logger.interval=1']
    work = ['--work-dir', tmp_path]
    command = [upstream_tool(library, 'train.py'), f'{case}.py', *work]
    length = [] if small == 'fpn' else ['train_cfg.max_epochs=1']
    validation = NO_VALIDATION.split()
    done = python(project, *command, '--cfg-options', *options, *length, *validation, path='.')
    assert done.returncode == 0, done.stderr[-3000:]
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    first = json.loads(log.read_text().splitlines()[0])
    assert 0 < first['loss'] < 100

    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    weights = torch.load(checkpoint, weights_only=False)['state_dict']
    bias = weights['backbone.stem.conv1.bias']
    assert bool((bias - MARK).abs().max() < 0.1) == marked
    if case in ('inherited', 'own_head'):
        command = [upstream_tool(library, 'test.py'), f'{case}.py', checkpoint, *work]
        done = python(project, *command, '--cfg-options', *options, path='.')
        assert done.returncode == 0, done.stderr[-3000:]
        assert {'mmdet': 'segm_mAP_50', 'mmseg': 'mIoU'}[library] in done.stdout + done.stderr


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

    def tool(script: str, name: str, *argv: str | Path) -> object:
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

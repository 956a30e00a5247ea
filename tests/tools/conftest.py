"""What the tools run on: tiny tasks, and files of published models."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tiny_tasks import TASKS, Task, make_task

from dat_pp.engine import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session', params=TASKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A task of each library after one epoch of training."""
    task = make_task(request.param, tmp_path_factory.mktemp('trained'))
    train.main([str(task.config), '--work-dir', str(task.work_dir)])
    return task


@pytest.fixture
def classification(tmp_path: Path) -> Task:
    return make_task('classification', tmp_path)


@pytest.fixture
def detection(tmp_path: Path) -> Task:
    return make_task('detection', tmp_path)


@pytest.fixture
def segmentation(tmp_path: Path) -> Task:
    return make_task('segmentation', tmp_path)


@pytest.fixture
def convert(run: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Call the converter of published files as its script does, in the repository's folder."""
    monkeypatch.chdir(ROOT)
    return partial(run, 'convert')


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return tmp_path / 'src.pth'


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / 'new' / 'folder' / 'dst.pth'

"""Tiny tasks to run the tools on."""

from pathlib import Path

import pytest
from tiny_tasks import TASKS, Task, make_task

from dat_pp.engine import train


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

"""Tiny tasks to call the tools on."""

import pytest
from tiny_tasks import TASKS, Task, make_task

from dat_pp.engine import train


@pytest.fixture(scope='session', params=TASKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A task after one epoch."""
    task = make_task(request.param, tmp_path_factory.mktemp('trained'))
    train.main([str(task.config), '--work-dir', str(task.work_dir)])
    return task

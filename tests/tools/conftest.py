"""Tiny tasks to call the tools on."""

import pytest
from tiny_tasks import TASKS, Task, make_task


@pytest.fixture(scope='session', params=TASKS)
def trained(
    request: pytest.FixtureRequest, tools: dict, tmp_path_factory: pytest.TempPathFactory
) -> Task:
    """A task after one epoch."""
    task = make_task(request.param, tmp_path_factory.mktemp('trained'))
    tools['train'].main([str(task.config), '--work-dir', str(task.work_dir)])
    return task

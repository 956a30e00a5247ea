"""The tools called in this process, and tiny tasks to call them on."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mmengine.visualization import Visualizer
from tiny_tasks import TASKS, Task, make_task

TOOLS = Path(__file__).parents[2] / 'tools'


@dataclass
class Outcome:
    """What a tool did: exit code, the lines on stderr, and the runner if it came that far."""

    code: int
    errors: list[str]
    runner: object


@pytest.fixture(scope='session')
def tools() -> dict:
    """``main`` of train.py and test.py, and ``run_main``."""
    sys.path.insert(0, str(TOOLS))
    modules = {}
    for name in ('common', 'train', 'test'):  # by path: `test` is a standard library module too
        spec = importlib.util.spec_from_file_location(
            name if name == 'common' else f'tool_{name}', TOOLS / f'{name}.py'
        )
        modules[name] = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = modules[name]
        spec.loader.exec_module(modules[name])
    return modules


@pytest.fixture
def run(tools: dict, capfd: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Call a tool as its script does: ``run('train', config, '--amp')``."""

    def call(name: str, *argv: object) -> Outcome:
        runner = None

        def main(arguments: list[str]) -> None:
            nonlocal runner
            runner = tools[name].main(arguments)

        # mmengine keeps visualizers by name for the life of a process.
        for kind in (Visualizer, *Visualizer.__subclasses__()):
            kind._instance_dict.clear()
        capfd.readouterr()
        code = tools['common'].run_main(main, [str(arg) for arg in argv])
        return Outcome(code, capfd.readouterr().err.splitlines(), runner)

    return call


@pytest.fixture(scope='session', params=TASKS)
def trained(
    request: pytest.FixtureRequest, tools: dict, tmp_path_factory: pytest.TempPathFactory
) -> Task:
    """A task after one epoch."""
    task = make_task(request.param, tmp_path_factory.mktemp('trained'))
    tools['train'].main([str(task.config), '--work-dir', str(task.work_dir)])
    return task

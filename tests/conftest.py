"""What every test starts from, and the tools called in this process."""

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before triton is imported: kernels run in its interpreter
    os.environ.setdefault('TRITON_INTERPRET', '1')

from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

TOOLS = Path(__file__).parents[1] / 'tools'


@pytest.fixture(autouse=True)
def _no_default_scope() -> None:
    """mmengine keeps the library that a test chose for the life of the process."""
    DefaultScope._instance_dict.clear()


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

"""What every test starts from, and the tools called in this process."""

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

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
def load_tool() -> Callable[..., ModuleType]:
    """Import a file below tools/ by its path: `test` is a standard library module too."""

    def load(path: str, name: str) -> ModuleType:
        folder = str((TOOLS / path).parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        spec = importlib.util.spec_from_file_location(name, TOOLS / path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope='session')
def tools(load_tool: Callable) -> dict[str, ModuleType]:
    """What train.py and test.py share, and the two."""
    common = load_tool('common.py', 'common')
    return {'common': common} | {
        name: load_tool(f'{name}.py', f'tool_{name}') for name in ('train', 'test')
    }


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

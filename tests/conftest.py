"""What every test starts from, and the tools called in this process."""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

if not torch.cuda.is_available():  # before triton is imported: kernels run in its interpreter
    os.environ.setdefault('TRITON_INTERPRET', '1')

from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from dat_pp.engine.errors import run_main


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


@pytest.fixture
def run(capfd: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Call a tool as its script does: ``run('train', config, '--amp')``."""

    def call(name: str, *argv: object) -> Outcome:
        runner = None
        tool = importlib.import_module(f'dat_pp.engine.{name}')

        def main(arguments: list[str]) -> None:
            nonlocal runner
            runner = tool.main(arguments)

        # mmengine keeps visualizers by name for the life of a process.
        for kind in (Visualizer, *Visualizer.__subclasses__()):
            kind._instance_dict.clear()
        capfd.readouterr()
        code = run_main(main, [str(arg) for arg in argv])
        return Outcome(code, capfd.readouterr().err.splitlines(), runner)

    return call

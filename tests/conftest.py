"""What every test starts from, and the tools run in this process."""

import gc
import importlib
import logging
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
from yapf.yapflib import yapf_api

from dat_pp.engine.errors import run_main

# Handlers of mmengine's loggers outlive a test, and the captured stream they write to does not.
logging.raiseExceptions = False


def _unformatted(text: str, **_: object) -> tuple[str, bool]:
    """Stand in for yapf, which takes most of the time of a tiny run: a config must only parse."""
    compile(text, 'config', 'exec')
    return text, False


yapf_api.FormatCode = _unformatted


@pytest.fixture(autouse=True)
def _no_default_scope() -> None:
    """Forget the library that an earlier test chose; mmengine keeps it for the whole process."""
    DefaultScope._instance_dict.clear()


_modules = 0


@pytest.fixture(autouse=True)
def _frozen_modules() -> None:
    """Leave what has been imported out of garbage collection, which mmengine runs per dataset."""
    global _modules
    if len(sys.modules) > _modules:
        _modules = len(sys.modules)
        gc.collect()
        gc.freeze()


@dataclass
class Outcome:
    """What a tool did: exit code, lines on stderr and stdout, and its runner, if it made one."""

    code: int
    errors: list[str]
    output: list[str]
    runner: object

    def assert_rejected(self, work_dir: Path, *expected: str) -> None:
        """Exit code 2, one line on stderr with all these texts, and nothing else written."""
        assert self.code == 2
        assert len(self.errors) == 1, self.errors
        for text in ('error: ', *expected):
            assert text in self.errors[0]
        assert self.output == []
        assert not work_dir.exists()


@pytest.fixture
def run(capfd: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Run a tool in this process as its script does: ``run('train', config, '--amp')``."""

    def call(name: str, *argv: object) -> Outcome:
        runner = None
        tool = importlib.import_module(f'dat_pp.engine.{name}')

        def main(arguments: list[str]) -> None:
            nonlocal runner
            runner = tool.main(arguments)

        # mmengine keeps visualizers by name for the whole process.
        for cls in (Visualizer, *Visualizer.__subclasses__()):
            cls._instance_dict.clear()
        capfd.readouterr()
        code = run_main(main, [str(arg) for arg in argv])
        out, err = capfd.readouterr()
        return Outcome(code, err.splitlines(), out.splitlines(), runner)

    return call

"""Python in a fresh process, in a folder that has nothing of this repository."""

import os
import subprocess
import sys
from pathlib import Path

import mmengine

SITE_PACKAGES = Path(mmengine.__file__).parents[1]
# Runs a script after a line of code, as one process.
AFTER = 'import runpy, sys; {before}; sys.argv = sys.argv[1:]; '
SCRIPT = AFTER + "runpy.run_path(sys.argv[0], run_name='__main__')"


def python(
    cwd: Path, *argv: str | Path, path: str = '', timeout: int = 600
) -> subprocess.CompletedProcess:
    """Run Python with these arguments in ``cwd``, with ``path`` as PYTHONPATH."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': path}
    env.pop('DAT_PP_TRACEBACK', None)
    command = [sys.executable, *map(str, argv)]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )


def script(
    cwd: Path, *argv: str | Path, before: str = 'pass', path: str = ''
) -> subprocess.CompletedProcess:
    """Run a script with its arguments after the statement ``before``."""
    return python(cwd, '-c', SCRIPT.format(before=before), *argv, path=path)


def upstream_tool(library: str, name: str) -> Path:
    """A tool as the library ships it, say ``upstream_tool('mmdet', 'train.py')``."""
    return SITE_PACKAGES / library / '.mim' / 'tools' / name

"""A Triton that cannot be used is why its backend cannot run, not an error at import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRITON = {
    'old': "__version__ = '3.1.0'",
    'broken': 'raise ImportError("libcuda.so.1: not found")',
    'driverless': 'raise RuntimeError("0 active drivers")',
    'odd': "__version__ = '3.9.0'",  # without anything that kernels need
}
REASONS = {
    'old': 'triton 3.1.0 is older than 3.4',
    'broken': 'triton cannot be imported: libcuda.so.1: not found',
    'driverless': 'triton cannot be imported: 0 active drivers',
    'odd': 'triton cannot be imported: ',
}
QUERY = """
import torch
from dat_pp.ops import neighborhood_attention
q = torch.zeros(1, 1, 3, 3, 8)
neighborhood_attention(q, q, q, torch.zeros(1, 5, 5), backend='blocked')
try:
    neighborhood_attention(q, q, q, torch.zeros(1, 5, 5), backend='triton')
except ValueError as error:
    print(error)
"""


def run(script: str, folder: Path, **env: str) -> str:
    """Output of a script in a process of its own, which finds packages in ``folder`` first."""
    env = {**os.environ, 'PYTHONPATH': f'{folder}:{os.environ.get("PYTHONPATH", "")}', **env}
    done = subprocess.run(
        [sys.executable, '-c', script], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('version', TRITON)
def test_unusable_triton(version: str, tmp_path: Path) -> None:
    """It is why backend 'triton' cannot run, not an error at import."""
    package = tmp_path / 'triton'
    package.mkdir()
    (package / '__init__.py').write_text(TRITON[version])
    out = run(QUERY, tmp_path, TRITON_INTERPRET='1')
    assert out.startswith(f"backend is 'triton', which cannot run: {REASONS[version]}")
    assert len(out.splitlines()) == 1


def test_no_triton(tmp_path: Path) -> None:
    hidden = 'import importlib.util as u; f = u.find_spec\n'
    hidden += "u.find_spec = lambda name, *a: None if name == 'triton' else f(name, *a)\n"
    assert 'cannot run: triton is not installed' in run(hidden + QUERY, tmp_path)

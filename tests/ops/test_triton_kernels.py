"""The kernels beyond the interpreter: they compile for a GPU, also where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dat_pp.ops.triton.kernels import block_of, launch, precision_of


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['fp16', 'fp32'])
def test_compile_for_gpu(dtype: str) -> None:
    """To machine code for an H100; no size makes a variant of its own."""
    script = Path(__file__).with_name('compile_kernels.py')
    env = {**os.environ, 'TRITON_INTERPRET': '0'}
    run = subprocess.run([sys.executable, script, dtype], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        'deformable forward_kernel',
        'deformable query_gradient_kernel',
        'deformable sample_gradient_kernel',
        'deformable table_gradient_kernel',
        'neighborhood forward_kernel',
        'neighborhood query_gradient_kernel',
        'neighborhood key_gradient_kernel',
    ]


def test_block_of() -> None:
    assert [block_of(n) for n in (2, 16, 17, 24, 32, 48, 96)] == [16, 16, 32, 32, 32, 64, 128]


def test_precision() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = 'ieee'
        assert precision_of(torch.float32) == 'ieee'
        assert precision_of(torch.float16) == 'tf32'
        matmul.fp32_precision = 'tf32'
        assert precision_of(torch.float32) == 'tf32'
    finally:
        matmul.fp32_precision = before


def test_launch_deterministic() -> None:
    """Nothing is timed, and the first configuration runs."""

    class Runs:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: object):
            return lambda *args, **flags: calls.append((self.name, args, flags))

    class Tuned(Runs):
        fn = Runs('plain')

        class _Config:
            def all_kwargs(self) -> dict:
                return dict(BLOCK=64, num_warps=4)

        configs = (_Config(), None)

    calls = []
    launch(Tuned('tuned'), None, 1, D=2)
    torch.use_deterministic_algorithms(True)
    try:
        launch(Tuned('tuned'), None, 1, D=2)
    finally:
        torch.use_deterministic_algorithms(False)
    assert calls == [
        ('tuned', (1,), dict(D=2)),
        ('plain', (1,), dict(D=2, BLOCK=64, num_warps=4)),
    ]

"""Functions that the Triton kernels of the operators share, and their launch."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime import Autotuner


@triton.jit
def _probe():
    pass


INTERPRETED = tl.constexpr(not isinstance(_probe, triton.JITFunction))
"""Whether kernels run in Triton's interpreter, decided by TRITON_INTERPRET at import."""


def block_of(head_size: int) -> int:
    """Smallest block that holds a head: a power of two of at least 16, as ``tl.dot`` needs."""
    return max(16, triton.next_power_of_2(head_size))


def precision_of(dtype: torch.dtype) -> str:
    """``input_precision`` of matrix products: TF32 only where PyTorch's own may use it."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, 'fp32_precision'):  # since PyTorch 2.9
        tf32 = matmul.fp32_precision == 'tf32'
    else:
        tf32 = matmul.allow_tf32
    return 'ieee' if dtype == torch.float32 and not tf32 else 'tf32'


def launch(
    kernel: Autotuner, grid: Callable[[dict], tuple[int, ...]], *args: Any, **flags: Any
) -> None:
    """Run a kernel with its fastest configuration, which may differ between processes.

    In PyTorch's deterministic mode run it with the first one.
    """
    if torch.are_deterministic_algorithms_enabled():
        kernel.fn[grid](*args, **flags, **kernel.configs[0].all_kwargs())
    else:
        kernel[grid](*args, **flags)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """``a @ b`` in float32."""
    if INTERPRETED:  # the interpreter multiplies bit patterns of bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def load_rows(base, rows, valid, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load rows of a (rows, D) matrix as (len(rows), BLOCK_D); zero where invalid or beyond D."""
    columns = tl.arange(0, BLOCK_D)[None]
    mask = valid[:, None] & (columns < D)
    return tl.load(base + rows.to(tl.int64)[:, None] * D + columns, mask=mask, other=0.0)


@triton.jit
def store_rows(base, rows, valid, values, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store valid rows of a (rows, D) matrix, in its dtype."""
    columns = tl.arange(0, BLOCK_D)[None]
    mask = valid[:, None] & (columns < D)
    pointers = base + rows.to(tl.int64)[:, None] * D + columns
    tl.store(pointers, values.to(base.dtype.element_ty), mask=mask)

"""What the Triton kernels of the operators share."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime import Autotuner

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether kernels run in Triton's interpreter, which was decided when this was imported."""


def block_of(head_size: int) -> int:
    """Smallest block that holds a head: a power of two that a matrix product takes."""
    return max(16, triton.next_power_of_2(head_size))


def precision_of(dtype: torch.dtype) -> str:
    """``input_precision`` of matrix products: what PyTorch allows for its own."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != 'tf32':
        return 'ieee'
    return 'tf32'


def launch(
    kernel: Autotuner, grid: Callable[[dict], tuple[int, ...]], *args: Any, **flags: Any
) -> None:
    """Run a kernel with its fastest configuration, which may differ from one process to another.

    Where PyTorch is told to be deterministic, run it with the first one.
    """
    if torch.are_deterministic_algorithms_enabled():
        kernel.fn[grid](*args, **flags, **kernel.configs[0].all_kwargs())
    else:
        kernel[grid](*args, **flags)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """``a @ b`` in float32."""
    if INTERPRETED:  # it would multiply the bit patterns of bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def load_rows(base, rows, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a (rows, D) matrix as (len(rows), BLOCK_D); zeros where not inside and beyond D."""
    columns = tl.arange(0, BLOCK_D)[None]
    mask = inside[:, None] & (columns < D)
    return tl.load(base + rows.to(tl.int64)[:, None] * D + columns, mask=mask, other=0.0)


@triton.jit
def store_rows(base, rows, inside, values, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write rows of a (rows, D) matrix, in its dtype."""
    columns = tl.arange(0, BLOCK_D)[None]
    mask = inside[:, None] & (columns < D)
    pointers = base + rows.to(tl.int64)[:, None] * D + columns
    tl.store(pointers, values.to(base.dtype.element_ty), mask=mask)

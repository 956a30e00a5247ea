"""Backend ``triton``: deformable attention in Triton kernels, imported on first use."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import custom_op, flops, triton
from ..context import constant_when_compiled
from ..dispatch import Backend
from . import blocked

MAX_LOGITS = 2**24
"""Logit gradients, over images and heads, that are in memory at once."""


def _programs() -> int:
    """Number of programs that keep a GPU busy; sums over long axes are split to reach it."""
    return 8 if triton.interpreted() else 512


def _sizes(q: Tensor, positions: Tensor, table: Tensor | None) -> tuple[int, ...]:
    """The kernels' size arguments."""
    _, heads, height, width, _ = q.shape
    _, groups, samples, _ = positions.shape
    rows, columns = (1, 1) if table is None else table.shape[1:]
    return heads, heads // groups, height * width, width, samples, rows, columns


def _flags(q: Tensor, table: Tensor | None) -> dict:
    """The kernels' compile-time arguments."""
    from ..triton.kernels import block_of, precision_of

    dim = q.shape[-1]
    return dict(
        D=dim, BLOCK_D=block_of(dim), HAS_TABLE=table is not None, PRECISION=precision_of(q.dtype)
    )


def _padded(table: Tensor | None, q: Tensor) -> Tensor:
    """The table with a border of zeros; any tensor if there is none."""
    return q if table is None else F.pad(table, (1, 1, 1, 1))


@torch.library.custom_op('dat_pp::triton_deformable_attention', mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor | None,
    query_y: Tensor,
    query_x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Output (B, h, H, W, d) and log-sum-exp of the logits (B, h, H, W), float32."""
    from ..triton.kernels import launch
    from .triton_kernels import forward_kernel

    sizes, flags = _sizes(q, positions, table), _flags(q, table)
    q, k, v, positions = (t.contiguous() for t in (q, k, v, positions))
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    pairs, queries = math.prod(q.shape[:2]), sizes[2]
    if not pairs:
        return out, lse
    launch(
        forward_kernel,
        lambda meta: (pairs * math.ceil(queries / meta['BLOCK_M']),),
        q, k, v, positions, _padded(table, q), query_y.contiguous(), query_x.contiguous(),
        out, lse, *sizes, **flags,
    )  # fmt: skip
    return out, lse


@_forward.register_fake
def _(q, k, v, positions, table, query_y, query_x):
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op('dat_pp::triton_deformable_attention_backward', mutates_args=())
def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor | None,
    query_y: Tensor,
    query_x: Tensor,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, positions and table; an empty tensor if there is no table."""
    sizes, flags = _sizes(q, positions, table), _flags(q, table)
    q, k, v, positions = (t.contiguous() for t in (q, k, v, positions))
    grad_out, query_y, query_x = (t.contiguous() for t in (grad_out, query_y, query_x))
    inputs = q, k, v, positions, _padded(table, q), query_y, query_x
    grad_q, delta, grad_table = _query_and_table_gradients(inputs, out, lse, grad_out, sizes, flags)
    grad_k, grad_v, grad_positions = _sample_gradients(inputs, lse, delta, grad_out, sizes, flags)
    return grad_q, grad_k, grad_v, grad_positions, grad_table


@_backward.register_fake
def _(grad_out, q, k, v, positions, table, query_y, query_x, out, lse):
    grad_table = positions.new_empty(0) if table is None else table.new_empty(table.shape)
    grads = (t.new_empty(t.shape) for t in (q, k, v, positions))
    return *grads, grad_table


def _query_and_table_gradients(
    inputs: tuple[Tensor, ...],
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    sizes: tuple[int, ...],
    flags: dict,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of q, sum(out * grad_out) per query, and the gradient of the table."""
    from ..triton.kernels import block_of, launch
    from .triton_kernels import query_gradient_kernel, table_gradient_kernel

    q, _, _, positions, _, query_y, query_x = inputs
    has_table = flags['HAS_TABLE']
    batch, heads, height, width, _ = q.shape
    _, _, queries, _, samples, rows, columns = sizes
    grad_q, delta = torch.empty_like(q), torch.empty_like(lse)

    # A slab is a number of images or, where one image is too large, of rows of one.
    slab_rows, slab_images = height, batch
    grad_logits = grad_table = positions.new_empty(0)
    if has_table:
        slab_rows = min(height, max(1, MAX_LOGITS // (heads * samples * width)))
        slab_images = min(max(1, batch), max(1, MAX_LOGITS // (heads * samples * queries)))
        grad_logits = q.new_empty(slab_images * heads * samples * slab_rows * width)
        block = min(16 if triton.interpreted() else 64, block_of(max(rows, columns)))
        tiles = math.ceil(rows / block) * math.ceil(columns / block)
        splits = max(1, min(_programs() // (heads * tiles), slab_images * samples))
        grad_table = positions.new_zeros(splits, heads, rows, columns)

    for image in range(0, batch, slab_images):
        images = min(slab_images, batch - image)
        for row in range(0, height, slab_rows):
            slab = min(slab_rows, height - row)

            def grid(meta: dict, pairs: int = images * heads, slab: int = slab) -> tuple[int]:
                return (pairs * math.ceil(slab * width / meta['BLOCK_M']),)

            launch(
                query_gradient_kernel, grid,
                *inputs, out, lse, grad_out, grad_q, delta, grad_logits, *sizes,
                image * heads, row * width, slab * width, STORE=has_table, **flags,
            )  # fmt: skip
            if has_table:
                table_gradient_kernel[(splits * heads * tiles,)](
                    grad_logits, positions, query_y, query_x, grad_table, *sizes,
                    image, images, row, slab, splits,
                    PRECISION=flags['PRECISION'], BLOCK_T=block,
                    BLOCK_Q=16 if triton.interpreted() else 32,
                )  # fmt: skip
    return grad_q, delta, grad_table.sum(0) if has_table else grad_table


def _sample_gradients(
    inputs: tuple[Tensor, ...],
    lse: Tensor,
    delta: Tensor,
    grad_out: Tensor,
    sizes: tuple[int, ...],
    flags: dict,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of k, v and positions."""
    from ..triton.kernels import launch
    from .triton_kernels import sample_gradient_kernel

    _, k, v, positions = inputs[:4]
    batch, heads, samples, dim = k.shape
    pairs, queries = batch * heads, sizes[2]
    # Assume a block size of 64 so that summation order is deterministic.
    splits = _programs() // max(1, pairs * math.ceil(samples / 64))
    splits = max(1, min(splits, math.ceil(queries / 256)))
    grads = [
        k.new_empty(splits, batch, heads, samples, size, dtype=torch.float32)
        for size in (dim, dim, 2)
    ]
    if pairs:
        launch(
            sample_gradient_kernel,
            lambda meta: (splits * pairs * math.ceil(samples / meta['BLOCK_N']),),
            *inputs, lse, delta, grad_out, *grads, *sizes, pairs, splits, **flags,
        )  # fmt: skip
    grad_k, grad_v, grad_positions = (grad.sum(0) for grad in grads)
    grad_positions = grad_positions.unflatten(1, (positions.shape[1], -1)).sum(2)
    return grad_k.to(k.dtype), grad_v.to(v.dtype), grad_positions


custom_op.register(_forward, _backward, blocked.run, flops.deformable_attention_flops)


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor | None,
    query_y: Tensor,
    query_x: Tensor,
    dropout_p: float = 0.0,
) -> Tensor:
    table = None if table is None else table.float()
    return _forward(q, k, v, positions.float(), table, query_y.float(), query_x.float())[0]


def unsupported_reason(q: Tensor, *inputs: Any) -> str | None:
    return triton.unsupported_reason(q, inputs[-1])


@constant_when_compiled
def load() -> str | None:
    return triton.load(f'{__package__}.triton_kernels')


BACKEND = Backend('triton', run, unsupported_reason, load, device='cuda')

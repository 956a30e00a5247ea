"""Deformable attention in Triton, as a custom operator; arguments as in the package's function."""

import math

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ..autograd import register_backward
from ..kernels import INTERPRETED, block_of, launch, precision_of
from .kernels import (
    forward_kernel,
    query_gradient_kernel,
    sample_gradient_kernel,
    table_gradient_kernel,
)

MAX_LOGITS = 2**24
"""Gradients of logits, over images and heads, that are in memory at once."""
PROGRAMS = 8 if INTERPRETED.value else 512
"""Programs that keep a GPU busy: sums over long axes are split until there are so many."""


def _sizes(q: Tensor, positions: Tensor, table: Tensor | None) -> tuple[int, ...]:
    """The kernels' size arguments."""
    _, heads, height, width, _ = q.shape
    _, groups, samples, _ = positions.shape
    rows, columns = (1, 1) if table is None else table.shape[1:]
    return heads, heads // groups, height * width, width, samples, rows, columns


def _flags(q: Tensor, table: Tensor | None) -> dict:
    """The kernels' compile-time arguments."""
    dim = q.shape[-1]
    return dict(
        D=dim, BLOCK_D=block_of(dim), HAS_TABLE=table is not None, PRECISION=precision_of(q.dtype)
    )


def _padded(table: Tensor | None, q: Tensor) -> Tensor:
    """The table with a border of zeros; without one something to point to."""
    return q if table is None else F.pad(table, (1, 1, 1, 1))


@torch.library.custom_op('dat_pp::deformable_attention', mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor | None,
    query_y: Tensor,
    query_x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Output (B, h, H, W, d) and log-sum-exp of the logits, (B, h, H, W) float32."""
    sizes, flags = _sizes(q, positions, table), _flags(q, table)
    q, k, v, positions = (t.contiguous() for t in (q, k, v, positions))
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    planes, queries = math.prod(q.shape[:2]), sizes[2]
    launch(
        forward_kernel,
        lambda meta: (planes * triton.cdiv(queries, meta['BLOCK_M']),),
        q, k, v, positions, _padded(table, q), query_y.contiguous(), query_x.contiguous(),
        out, lse, *sizes, **flags,
    )  # fmt: skip
    return out, lse


@_forward.register_fake
def _(q, k, v, positions, table, query_y, query_x):
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op('dat_pp::deformable_attention_backward', mutates_args=())
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
    """Gradients of q, k, v, positions and table; of no table (0,)."""
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
    """Gradient of q, sum(out * grad_out) of each query, and the gradient of the table."""
    q, _, _, positions, _, query_y, query_x = inputs
    has_table = flags['HAS_TABLE']
    batch, heads, height, width, _ = q.shape
    _, _, queries, _, samples, rows, columns = sizes
    grad_q, delta = torch.empty_like(q), torch.empty_like(lse)

    # A slab: some images, or, where one image is too much, some rows of one.
    slab_rows, slab_images = height, batch
    grad_logits = grad_table = positions.new_empty(0)
    if has_table:
        slab_rows = min(height, max(1, MAX_LOGITS // (heads * samples * width)))
        slab_images = min(batch, max(1, MAX_LOGITS // (heads * samples * queries)))
        grad_logits = q.new_empty(slab_images * heads * samples * slab_rows * width)
        block = min(16 if INTERPRETED.value else 64, block_of(max(rows, columns)))
        tiles = triton.cdiv(rows, block) * triton.cdiv(columns, block)
        splits = max(1, min(PROGRAMS // (heads * tiles), slab_images * samples))
        grad_table = positions.new_zeros(splits, heads, rows, columns)

    for image in range(0, batch, slab_images):
        images = min(slab_images, batch - image)
        for row in range(0, height, slab_rows):
            slab = min(slab_rows, height - row)

            def grid(meta: dict, programs: int = images * heads, slab: int = slab) -> tuple[int]:
                return (programs * triton.cdiv(slab * width, meta['BLOCK_M']),)

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
                    BLOCK_Q=16 if INTERPRETED.value else 32,
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
    _, k, v, positions = inputs[:4]
    batch, heads, samples, dim = k.shape
    planes, queries = batch * heads, sizes[2]
    # By block sizes of about 64, whatever is chosen, so that the order of sums stays the same.
    splits = PROGRAMS // max(1, planes * triton.cdiv(samples, 64))
    splits = max(1, min(splits, triton.cdiv(queries, 256)))
    grads = [
        k.new_empty(splits, batch, heads, samples, size, dtype=torch.float32)
        for size in (dim, dim, 2)
    ]
    launch(
        sample_gradient_kernel,
        lambda meta: (splits * planes * triton.cdiv(samples, meta['BLOCK_N']),),
        *inputs, lse, delta, grad_out, *grads, *sizes, planes, splits, **flags,
    )  # fmt: skip
    grad_k, grad_v, grad_positions = (grad.sum(0) for grad in grads)
    grad_positions = grad_positions.unflatten(1, (positions.shape[1], -1)).sum(2)
    return grad_k.to(k.dtype), grad_v.to(v.dtype), grad_positions


register_backward(_forward, _backward)


def fused(
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

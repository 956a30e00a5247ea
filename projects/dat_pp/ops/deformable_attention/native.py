"""Deformable attention on CPUs, compiled, as a custom operator."""

import math

import torch
from torch import Tensor

from ..autograd import register_backward
from ..native import as_heads, as_map, call, heads_last, padded_size, splits_of

TILE = 32, 16
"""Rows and columns of queries of a tile in native.cpp (8 columns without AVX-512)."""


def _inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor | None,
    query_y: Tensor,
    query_x: Tensor,
) -> tuple[list[int], list[Tensor], list[Tensor | None]]:
    """The kernels' sizes, maps and arrays."""
    batch, heads, height, width, dim = q.shape
    padded = padded_size(dim)
    rows, columns = (1, 1) if table is None else table.shape[1:]
    sizes = [dim, padded, batch, heads, positions.shape[1], height, width, k.shape[2]]
    maps = [as_map(t, padded) for t in (q, k, v)]
    arrays = [
        t if t is None else t.float().contiguous() for t in (positions, table, query_y, query_x)
    ]
    return [*sizes, rows, columns, table is not None], maps, arrays


@torch.library.custom_op('dat_pp::native_deformable_attention', mutates_args=())
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
    sizes, maps, arrays = _inputs(q, k, v, positions, table, query_y, query_x)
    out = heads_last(maps[0])
    lse = out.new_empty(q.shape[:-1])
    call('deformable_attention', sizes, [*maps, out], [*arrays, lse])
    return as_heads(out, q), lse


@_forward.register_fake
def _(q, k, v, positions, table, query_y, query_x):
    return heads_last(q), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op('dat_pp::native_deformable_attention_backward', mutates_args=())
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
    sizes, maps, arrays = _inputs(q, k, v, positions, table, query_y, query_x)
    dim, padded, batch, heads, groups, height, width, samples, rows, columns, _ = sizes
    grad_q = heads_last(maps[0])
    tiles = math.ceil(height / TILE[0]) * math.ceil(width / TILE[1])
    splits = splits_of(batch * heads, tiles)
    grads = [
        lse.new_zeros(splits, batch, heads, *shape)
        for shape in ((samples, padded), (samples, padded), (samples, 2), (rows, columns))
    ]
    call(
        'deformable_attention_backward',
        [*sizes, splits],
        [*maps, as_map(out, padded), as_map(grad_out, padded), grad_q],
        [*arrays, lse, *grads],
    )
    grad_k, grad_v, grad_positions, grad_table = (grad.sum(0) for grad in grads)
    grad_positions = grad_positions.unflatten(1, (groups, -1)).sum(2)
    return (
        as_heads(grad_q, q),
        grad_k[..., :dim].to(k.dtype).contiguous(),
        grad_v[..., :dim].to(v.dtype).contiguous(),
        grad_positions.to(positions.dtype),
        lse.new_empty(0) if table is None else grad_table.sum(0).to(table.dtype),
    )


@_backward.register_fake
def _(grad_out, q, k, v, positions, table, query_y, query_x, out, lse):
    grads = (t.new_empty(t.shape) for t in (k, v, positions))
    return (
        heads_last(q),
        *grads,
        lse.new_empty(0) if table is None else table.new_empty(table.shape),
    )


register_backward(_forward, _backward)


def native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor | None,
    query_y: Tensor,
    query_x: Tensor,
    dropout_p: float = 0.0,
) -> Tensor:
    return _forward(q, k, v, positions, table, query_y, query_x)[0]

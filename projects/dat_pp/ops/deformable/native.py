"""Backend ``native``: deformable attention on CPUs, C++ compiled on first use."""

import math
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import custom_op, flops, native
from ..context import constant_when_compiled
from ..dispatch import Backend
from . import blocked

TILE_ROWS = 32
"""Rows of queries per tile."""


class Arguments(native.Arguments):
    """Mirrors ``Arguments`` in native.cpp."""

    _fields_ = (
        *native.fields(c_int64, 'threads head_size batch heads groups height width samples'),
        *native.fields(c_int64, 'table_rows table_columns splits'),
        *native.fields(c_float, 'scale'),
        *native.fields(c_void_p, 'positions table query_y query_x'),
        *native.fields(native.Map, 'q k v out'),
        *native.fields(c_void_p, 'lse'),
        *native.fields(native.Map, 'grad_out grad_q'),
        *native.fields(c_void_p, 'grad_k grad_v grad_positions grad_table'),
    )


KERNELS = native.Kernels(Path(__file__).with_suffix('.cpp'), Arguments, TILE_ROWS=TILE_ROWS)


def _inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor | None,
    query_y: Tensor,
    query_x: Tensor,
) -> dict[str, Any]:
    """Those of the kernels' arguments that are inputs."""
    batch, heads, height, width, dim = q.shape
    padded = native.padded_size(dim)
    rows, columns = (1, 1) if table is None else table.shape[1:]
    maps = {name: native.as_map(x, padded) for name, x in (('q', q), ('k', k), ('v', v))}
    arrays = dict(positions=positions, table=table, query_y=query_y, query_x=query_x)
    return dict(
        **maps,
        **{name: None if x is None else x.float().contiguous() for name, x in arrays.items()},
        head_size=padded,
        batch=batch,
        heads=heads,
        groups=positions.shape[1],
        height=height,
        width=width,
        samples=k.shape[2],
        table_rows=rows,
        table_columns=columns,
        scale=dim**-0.5,
    )


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
    """Output (B, h, H, W, d) and log-sum-exp of the logits (B, h, H, W), float32."""
    inputs = _inputs(q, k, v, positions, table, query_y, query_x)
    out = native.heads_last(inputs['q'])
    lse = out.new_empty(q.shape[:-1])
    KERNELS('forward_kernel', Arguments(**inputs, out=out, lse=lse))
    return native.as_heads(out, q), lse


@_forward.register_fake
def _(q, k, v, positions, table, query_y, query_x):
    return native.heads_last(q), q.new_empty(q.shape[:-1], dtype=torch.float32)


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
    """Gradients of q, k, v, positions and table; an empty tensor if there is no table."""
    inputs = _inputs(q, k, v, positions, table, query_y, query_x)
    batch, heads, height, width, dim = q.shape
    padded, samples = inputs['head_size'], inputs['samples']
    tiles = math.ceil(height / TILE_ROWS) * math.ceil(width / KERNELS.lanes)
    splits = native.splits_of(batch * heads, tiles)
    grad_q = native.heads_last(inputs['q'])
    shapes = dict(
        grad_k=(samples, padded),
        grad_v=(samples, padded),
        grad_positions=(samples, 2),
        grad_table=(inputs['table_rows'], inputs['table_columns']),
    )
    grads = {name: lse.new_zeros(splits, batch, heads, *shape) for name, shape in shapes.items()}
    KERNELS(
        'backward_kernel',
        Arguments(
            **inputs,
            splits=splits,
            out=native.as_map(out, padded),
            lse=lse,
            grad_out=native.as_map(grad_out, padded),
            grad_q=grad_q,
            **grads,
        ),
    )
    grad_k, grad_v, grad_positions, grad_table = (grad.sum(0) for grad in grads.values())
    grad_positions = grad_positions.unflatten(1, (positions.shape[1], -1)).sum(2)
    return (
        native.as_heads(grad_q, q),
        grad_k[..., :dim].to(k.dtype).contiguous(),
        grad_v[..., :dim].to(v.dtype).contiguous(),
        grad_positions.to(positions.dtype),
        lse.new_empty(0) if table is None else grad_table.sum(0).to(table.dtype),
    )


@_backward.register_fake
def _(grad_out, q, k, v, positions, table, query_y, query_x, out, lse):
    grads = (x.new_empty(x.shape) for x in (k, v, positions))
    grad_table = lse.new_empty(0) if table is None else table.new_empty(table.shape)
    return native.heads_last(q), *grads, grad_table


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
    return _forward(q, k, v, positions, table, query_y, query_x)[0]


def unsupported_reason(q: Tensor, *inputs: Any) -> str | None:
    return native.unsupported_reason(q, inputs[-1])


@constant_when_compiled
def load() -> str | None:
    return KERNELS.load()


BACKEND = Backend('native', run, unsupported_reason, load, device='cpu')

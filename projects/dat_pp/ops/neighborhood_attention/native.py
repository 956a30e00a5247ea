"""Neighborhood attention on CPUs, compiled, as a custom operator."""

import math

import torch
from torch import Tensor

from ..autograd import register_backward
from ..native import as_heads, as_map, call, heads_last, padded_size

ROWS = 16
"""Rows of queries whose sums are their own; as in native.cpp."""
MAX_KERNEL = 17
"""Largest window size K, for which there is room; as in native.cpp."""


def _inputs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[list[int], list[Tensor]]:
    """The kernels' sizes and maps."""
    dim = q.shape[-1]
    padded = padded_size(dim)
    sizes = [dim, padded, *q.shape[:4], (bias.shape[-1] + 1) // 2]
    return sizes, [as_map(t, padded) for t in (q, k, v)]


@torch.library.custom_op('dat_pp::native_neighborhood_attention', mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, h, H, W, d) and log-sum-exp of the logits, (B, h, H, W) float32."""
    sizes, maps = _inputs(q, k, v, bias)
    out = heads_last(maps[0])
    lse = out.new_empty(q.shape[:-1])
    call('neighborhood_attention', sizes, [*maps, out], [bias.float().contiguous(), lse])
    return as_heads(out, q), lse


@_forward.register_fake
def _(q, k, v, bias):
    return heads_last(q), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op('dat_pp::native_neighborhood_attention_backward', mutates_args=())
def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and bias."""
    sizes, maps = _inputs(q, k, v, bias)
    _, padded, batch, heads, height, width, kernel = sizes
    grads = [heads_last(t).zero_() for t in maps]
    bands = math.ceil(height / ROWS)
    grad_bias = lse.new_zeros(batch, heads, bands, *bias.shape[1:])
    reach = lse.new_empty(batch, heads, bands, 2, ROWS + kernel - 1, width, padded)
    call(
        'neighborhood_attention_backward',
        sizes,
        [*maps, as_map(out, padded), as_map(grad_out, padded), *grads],
        [bias.float().contiguous(), lse, grad_bias, reach],
    )
    return *(as_heads(g, q) for g in grads), grad_bias.sum((0, 2)).to(bias.dtype)


@_backward.register_fake
def _(grad_out, q, k, v, bias, out, lse):
    return *(heads_last(t) for t in (q, k, v)), bias.new_empty(bias.shape)


register_backward(_forward, _backward)


def native(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float = 0.0) -> Tensor:
    return _forward(q, k, v, bias)[0]

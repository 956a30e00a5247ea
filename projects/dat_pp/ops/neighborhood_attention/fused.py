"""Neighborhood attention in Triton, a custom operator; arguments as in the package's function."""

import math

import torch
import triton
from torch import Tensor

from ..autograd import register_backward
from ..kernels import block_of, launch
from .kernels import TILE, forward_kernel, key_gradient_kernel, query_gradient_kernel


def _launch_arguments(q: Tensor, bias: Tensor) -> tuple[int, tuple[int, int, int], dict]:
    """Tiles of a plane, the kernels' size arguments, and their compile-time ones."""
    _, heads, height, width, dim = q.shape
    flags = dict(D=dim, BLOCK_D=block_of(dim), K=(bias.shape[-1] + 1) // 2, TILE=TILE)
    return triton.cdiv(height, TILE) * triton.cdiv(width, TILE), (heads, height, width), flags


@torch.library.custom_op('dat_pp::neighborhood_attention', mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, h, H, W, d) and log-sum-exp of the logits, (B, h, H, W) float32."""
    tiles, sizes, flags = _launch_arguments(q, bias)
    q, k, v, bias = (t.contiguous() for t in (q, k, v, bias))
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    planes = math.prod(q.shape[:2])
    launch(forward_kernel, lambda _: (planes * tiles,), q, k, v, bias, out, lse, *sizes, **flags)
    return out, lse


@_forward.register_fake
def _(q, k, v, bias):
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op('dat_pp::neighborhood_attention_backward', mutates_args=())
def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and bias."""
    tiles, sizes, flags = _launch_arguments(q, bias)
    q, k, v, bias, grad_out = (t.contiguous() for t in (q, k, v, bias, grad_out))
    batch, heads = q.shape[:2]
    grad_q, grad_k, grad_v, delta = (torch.empty_like(t) for t in (q, k, v, lse))
    size = bias.shape[-1]
    entries = triton.next_power_of_2(size * size)
    grad_bias = bias.new_empty(batch, heads, tiles, entries)

    def grid(_: dict) -> tuple[int]:
        return (batch * heads * tiles,)

    launch(
        query_gradient_kernel, grid,
        q, k, v, bias, out, lse, grad_out, grad_q, delta, *sizes, **flags,
    )  # fmt: skip
    launch(
        key_gradient_kernel, grid,
        q, k, v, bias, lse, delta, grad_out, grad_k, grad_v, grad_bias, *sizes,
        ENTRIES=entries, **flags,
    )  # fmt: skip
    grad_bias = grad_bias.sum((0, 2))[:, : size * size].view(heads, size, size)
    return grad_q, grad_k, grad_v, grad_bias.contiguous()


@_backward.register_fake
def _(grad_out, q, k, v, bias, out, lse):
    return tuple(t.new_empty(t.shape) for t in (q, k, v, bias))


register_backward(_forward, _backward)


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float = 0.0) -> Tensor:
    return _forward(q, k, v, bias.float())[0]

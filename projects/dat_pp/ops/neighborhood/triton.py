"""Backend ``triton``: neighborhood attention in Triton kernels, imported on first use."""

import math

import torch
from torch import Tensor

from .. import custom_op, flops, triton
from ..context import constant_when_compiled
from ..dispatch import Backend
from . import blocked
from .dilation import by_residue_class

TILE = 8
"""Side of the tiles of a map."""


def _launch_arguments(q: Tensor, bias: Tensor) -> tuple[int, tuple[int, int, int], dict]:
    """Tiles of a map, the kernels' size arguments, and their compile-time ones."""
    from ..triton.kernels import block_of

    _, heads, height, width, dim = q.shape
    flags = dict(D=dim, BLOCK_D=block_of(dim), K=(bias.shape[-1] + 1) // 2, TILE=TILE)
    return math.ceil(height / TILE) * math.ceil(width / TILE), (heads, height, width), flags


@torch.library.custom_op('dat_pp::triton_neighborhood_attention', mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, h, H, W, d) and log-sum-exp of the logits (B, h, H, W), float32."""
    from ..triton.kernels import launch
    from .triton_kernels import forward_kernel

    tiles, sizes, flags = _launch_arguments(q, bias)
    q, k, v, bias = (t.contiguous() for t in (q, k, v, bias))
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    grid = (math.prod(q.shape[:2]) * tiles,)
    if any(grid):
        launch(forward_kernel, lambda _: grid, q, k, v, bias, out, lse, *sizes, **flags)
    return out, lse


@_forward.register_fake
def _(q, k, v, bias):
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op('dat_pp::triton_neighborhood_attention_backward', mutates_args=())
def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and bias."""
    from ..triton.kernels import launch
    from .triton_kernels import key_gradient_kernel, query_gradient_kernel

    tiles, sizes, flags = _launch_arguments(q, bias)
    q, k, v, bias, grad_out = (t.contiguous() for t in (q, k, v, bias, grad_out))
    batch, heads = q.shape[:2]
    grad_q, grad_k, grad_v, delta = (torch.empty_like(t) for t in (q, k, v, lse))
    size = bias.shape[-1]
    entries = 2 ** (size * size - 1).bit_length()
    grad_bias = bias.new_empty(batch, heads, tiles, entries)

    if batch:
        grid = (batch * heads * tiles,)
        launch(
            query_gradient_kernel, lambda _: grid,
            q, k, v, bias, out, lse, grad_out, grad_q, delta, *sizes, **flags,
        )  # fmt: skip
        launch(
            key_gradient_kernel, lambda _: grid,
            q, k, v, bias, lse, delta, grad_out, grad_k, grad_v, grad_bias, *sizes,
            ENTRIES=entries, **flags,
        )  # fmt: skip
    grad_bias = grad_bias.sum((0, 2))[:, : size * size].view(heads, size, size)
    return grad_q, grad_k, grad_v, grad_bias.contiguous()


@_backward.register_fake
def _(grad_out, q, k, v, bias, out, lse):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, bias))


custom_op.register(_forward, _backward, blocked.run, flops.neighborhood_attention_flops)


def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float = 0.0) -> Tensor:
    return _forward(q, k, v, bias.float())[0]


def unsupported_reason(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float = 0.0, dilation: int = 1
) -> str | None:
    return triton.unsupported_reason(q, dropout_p)


@constant_when_compiled
def load() -> str | None:
    return triton.load(f'{__package__}.triton_kernels')


BACKEND = Backend('triton', by_residue_class(run), unsupported_reason, load, device='cuda')

"""Backend ``native``: neighborhood attention on CPUs, C++ compiled on first use."""

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
from .dilation import by_residue_class

BAND_ROWS = 16
"""Rows of queries whose gradients of keys, values and bias are summed together."""
MAX_KERNEL = 17
"""Largest window size K; bounds a buffer of the kernels."""


class Arguments(native.Arguments):
    """Mirrors ``Arguments`` in native.cpp."""

    _fields_ = (
        *native.fields(c_int64, 'threads head_size batch heads height width kernel'),
        *native.fields(c_float, 'scale'),
        *native.fields(c_void_p, 'bias'),
        *native.fields(native.Map, 'q k v out'),
        *native.fields(c_void_p, 'lse'),
        *native.fields(native.Map, 'grad_out grad_q grad_k grad_v'),
        *native.fields(c_void_p, 'grad_bias band_grads'),
    )


KERNELS = native.Kernels(
    Path(__file__).with_suffix('.cpp'), Arguments, BAND_ROWS=BAND_ROWS, MAX_KERNEL=MAX_KERNEL
)


def _inputs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> dict[str, Any]:
    """Those of the kernels' arguments that are inputs."""
    batch, heads, height, width, dim = q.shape
    padded = native.padded_size(dim)
    return dict(
        q=native.as_map(q, padded),
        k=native.as_map(k, padded),
        v=native.as_map(v, padded),
        bias=bias.float().contiguous(),
        head_size=padded,
        batch=batch,
        heads=heads,
        height=height,
        width=width,
        kernel=(bias.shape[-1] + 1) // 2,
        scale=dim**-0.5,
    )


@torch.library.custom_op('dat_pp::native_neighborhood_attention', mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, h, H, W, d) and log-sum-exp of the logits (B, h, H, W), float32."""
    inputs = _inputs(q, k, v, bias)
    out = native.heads_last(inputs['q'])
    lse = out.new_empty(q.shape[:-1])
    KERNELS('forward_kernel', Arguments(**inputs, out=out, lse=lse))
    return native.as_heads(out, q), lse


@_forward.register_fake
def _(q, k, v, bias):
    return native.heads_last(q), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op('dat_pp::native_neighborhood_attention_backward', mutates_args=())
def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and bias."""
    inputs = _inputs(q, k, v, bias)
    padded, kernel = inputs['head_size'], inputs['kernel']
    batch, heads, height, width, _ = q.shape
    maps = {f'grad_{name}': native.heads_last(inputs[name]).zero_() for name in ('q', 'k', 'v')}
    bands = math.ceil(height / BAND_ROWS)
    grad_bias = lse.new_zeros(batch, heads, bands, *bias.shape[1:])
    reach = BAND_ROWS + kernel - 1
    KERNELS(
        'backward_kernel',
        Arguments(
            **inputs,
            out=native.as_map(out, padded),
            lse=lse,
            grad_out=native.as_map(grad_out, padded),
            **maps,
            grad_bias=grad_bias,
            band_grads=lse.new_empty(batch, heads, bands, 2, reach, width, padded),
        ),
    )
    grad_q, grad_k, grad_v = (native.as_heads(grad, q) for grad in maps.values())
    return grad_q, grad_k, grad_v, grad_bias.sum((0, 2)).to(bias.dtype)


@_backward.register_fake
def _(grad_out, q, k, v, bias, out, lse):
    return *(native.heads_last(x) for x in (q, k, v)), bias.new_empty(bias.shape)


custom_op.register(_forward, _backward, blocked.run, flops.neighborhood_attention_flops)


def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float = 0.0) -> Tensor:
    return _forward(q, k, v, bias)[0]


def unsupported_reason(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float = 0.0, dilation: int = 1
) -> str | None:
    kernel = (bias.shape[-1] + 1) // 2
    if kernel > MAX_KERNEL:
        return f'a window of {kernel} is above {MAX_KERNEL}'
    return native.unsupported_reason(q, dropout_p)


@constant_when_compiled
def load() -> str | None:
    return KERNELS.load()


BACKEND = Backend('native', by_residue_class(run), unsupported_reason, load, device='cpu')

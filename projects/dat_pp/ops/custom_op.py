"""What the backends that are custom operators of PyTorch share."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.library import CustomOpDef

from . import flops
from .context import is_exporting_onnx, is_transformed

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def unsupported_reason(q: Tensor, dropout_p: float, max_head_size: int) -> str | None:
    """Why a custom operator cannot run on these queries; None if it can."""
    if q.dtype not in DTYPES:
        return f'it has no {q.dtype}'.replace('torch.', '')
    if q.shape[-1] > max_head_size:
        return f'a head of size {q.shape[-1]} is above {max_head_size}'
    if dropout_p > 0:
        return 'it has no dropout of attention weights'
    if is_exporting_onnx():
        return 'it has no ONNX form; set DAT_PP_BACKEND=reference'
    if is_transformed():
        return 'it has no torch.func or forward-mode derivatives; set DAT_PP_BACKEND=reference'
    return None


def register(
    forward: CustomOpDef, backward: CustomOpDef, differentiable: Callable, formula: flops.Formula
) -> None:
    """Make a custom operator differentiable and its FLOPs countable.

    Args:
        forward: The custom operator; returns the output and the log-sum-exp of the logits.
        backward: The custom operator of the gradients. Called with the gradient of the output, the
            inputs of ``forward`` and its results; returns the gradients of the first inputs, any
            tensor for an input that is None.
        differentiable: Called with the inputs of ``forward``; returns the output. Differentiated
            in place of ``backward`` if the gradients need gradients (``create_graph=True``).
        formula: FLOPs of ``forward``; see :mod:`dat_pp.ops.flops`.
    """

    def setup_context(ctx: BackwardCFunction, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def run(ctx: BackwardCFunction, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        # Read once: activation checkpointing refuses a second time.
        saved: tuple[Tensor | None, ...] = ctx.saved_tensors
        inputs = saved[:-2]
        if grad_out is None:
            return (None,) * len(inputs)
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_gradients(differentiable, inputs, ctx.needs_input_grad, grad_out)
        grads = backward(grad_out, *saved)
        grads = [None if x is None else grad for x, grad in zip(inputs, grads)]
        return *grads, *[None] * (len(inputs) - len(grads))

    forward.register_autograd(run, setup_context=setup_context)
    flops.register(forward, backward, formula)


def _differentiable_gradients(
    function: Callable, inputs: tuple[Tensor | None, ...], needed: tuple[bool, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    # Aliases: an input may itself depend on another one.
    aliases = [None if x is None else x.view_as(x) for x in inputs]
    wanted = [x for x, need in zip(aliases, needed) if x is not None and need]
    grads = iter(
        torch.autograd.grad(function(*aliases), wanted, grad, create_graph=True, allow_unused=True)
    )
    return tuple(next(grads) if need else None for need in needed)

"""Gradients of the attention operators that are custom operators of PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor


def register_backward(forward: Callable, backward: Callable) -> None:
    """Make a custom operator differentiable.

    Args:
        forward: Returns the output and the log-sum-exp of the logits.
        backward: Called with the output's gradient, the inputs of ``forward`` and its results;
            returns the gradients of the first inputs, of no tensor (None) a tensor of any size.
    """

    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple
    ) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def run(
        ctx: torch.autograd.function.FunctionCtx, grad_out: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a second time checkpointing would refuse
        inputs = saved[:-2]
        grads = () if grad_out is None else backward(grad_out, *saved)
        grads = [None if x is None else grad for x, grad in zip(inputs, grads)]
        return *grads, *[None] * (len(inputs) - len(grads))

    forward.register_autograd(run, setup_context=setup_context)

"""What PyTorch is doing while an operator is called, as far as custom operators care."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.autograd import forward_ad

T = TypeVar('T')


def constant_when_compiled(function: Callable[[], T]) -> Callable[[], T]:
    """Have torch.compile call a function without arguments while tracing and keep its result.

    This is ``torch.compiler.assume_constant_result``, which would import the compiler and Triton.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # what Dynamo looks for
    return function


def is_transformed() -> bool:
    """Whether derivatives are taken by torch.func or in forward mode.

    Custom operators have neither: torch.func.grad raises an error, and in forward mode PyTorch
    takes their output for a constant. ``torch.func.vmap`` alone runs them image by image.
    """
    if forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    functorch = torch._C._functorch
    return torch.compiler.is_compiling() or any(
        level.key() != functorch.TransformType.Vmap for level in functorch.get_interpreter_stack()
    )


def is_exporting() -> bool:
    """Whether torch.export or torch.onnx.export traces this call."""
    exports = hasattr(torch.compiler, 'is_exporting') and torch.compiler.is_exporting()  # 2.7
    return exports or is_exporting_onnx()


@constant_when_compiled
def is_exporting_onnx() -> bool:
    """Whether torch.onnx.export traces this call; torch.compile would take it for False."""
    return torch.onnx.is_in_onnx_export()

"""FLOPs of the operators, for counters that see custom operators only by name.

They count the two matrix products of attention as PyTorch does in the reference (2 FLOPs per MAC, 4
in the backward pass), and neither the softmax nor the lookup of the bias.

``FORMULAS`` maps the name of every custom operator (``'dat_pp::native_deformable_attention'``) to a
function of the shapes of its arguments; ``dat_pp.compat.torch`` hands them to PyTorch's counter.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

Shape = Sequence[int]
Formula = Callable[..., int]
FORMULAS: dict[str, Formula] = {}


def deformable_attention_flops(q: Shape, k: Shape, *_: Any, **__: Any) -> int:
    """FLOPs of ``deformable_attention`` for q of shape (B, h, H, W, d) and k (B, h, N, d)."""
    return 4 * math.prod(q) * k[-2]


def neighborhood_attention_flops(
    q: Shape, k: Shape, v: Shape, bias: Shape, *_: Any, **__: Any
) -> int:
    """FLOPs of ``neighborhood_attention`` for q (B, h, H, W, d) and bias (h, 2 K - 1, 2 K - 1)."""
    return 4 * math.prod(q) * ((bias[-1] + 1) // 2) ** 2


def register(forward: Any, backward: Any, formula: Formula) -> None:
    """Add a custom operator and that of its gradients to ``FORMULAS``."""

    def backward_formula(grad_out: Shape, *args: Any, **kwargs: Any) -> int:
        return 2 * formula(*args, **kwargs)

    FORMULAS[forward._qualname] = formula
    FORMULAS[backward._qualname] = backward_formula

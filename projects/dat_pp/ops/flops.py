"""FLOPs of the operators, for counters that see custom operators only by name.

They count the two matrix products of attention as PyTorch does in the reference (2 FLOPs per MAC, 4
in the backward pass), and neither the softmax nor the lookup of the bias.

``FORMULAS`` maps the name of every custom operator (``'dat_pp::native_deformable_attention'``) to a
function of the shapes of its arguments. :class:`torch.utils.flop_counter.FlopCounterMode` knows
them.
"""

import importlib.abc
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

Shape = Sequence[int]
Formula = Callable[..., int]
FORMULAS: dict[str, Formula] = {}
COUNTER = 'torch.utils.flop_counter'


def deformable_attention_flops(q: Shape, k: Shape, *_: Any, **__: Any) -> int:
    """FLOPs of ``deformable_attention`` for q of shape (B, h, H, W, d) and k (B, h, N, d)."""
    return 4 * math.prod(q) * k[-2]


def neighborhood_attention_flops(
    q: Shape, k: Shape, v: Shape, bias: Shape, *_: Any, **__: Any
) -> int:
    """FLOPs of ``neighborhood_attention`` for q (B, h, H, W, d) and bias (h, 2 K - 1, 2 K - 1)."""
    return 4 * math.prod(q) * ((bias[-1] + 1) // 2) ** 2


def register(forward: Any, backward: Any, formula: Formula) -> None:
    """Add a custom operator and that of its gradients to ``FORMULAS`` and to PyTorch's counter."""

    def backward_formula(grad_out: Shape, *args: Any, **kwargs: Any) -> int:
        return 2 * formula(*args, **kwargs)

    for operator, function in ((forward, formula), (backward, backward_formula)):
        FORMULAS[operator._qualname] = function
        if COUNTER in sys.modules:
            _tell_counter(sys.modules[COUNTER], operator._qualname)


def _tell_counter(counter: ModuleType, qualname: str) -> None:
    namespace, name = qualname.split('::')
    packet = getattr(getattr(torch.ops, namespace), name)
    counter.register_flop_formula(packet)(FORMULAS[qualname])


class _AfterImport(importlib.abc.MetaPathFinder):
    """Tells PyTorch's counter about ``FORMULAS`` once it is imported.

    Importing it here would import Triton.
    """

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for qualname in FORMULAS:
                _tell_counter(module, qualname)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this loader only
        return spec


if COUNTER not in sys.modules:
    sys.meta_path.insert(0, _AfterImport())

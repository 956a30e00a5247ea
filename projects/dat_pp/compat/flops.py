"""Make mmengine's FLOP counter, and with it the libraries' get_flops.py, count our operators.

``mmengine.analysis`` traces a model and looks every operator up by name. It counts a custom
operator that it does not find as zero, so the CPU and GPU kernels would leave all attention out.
They join its table here, by its rules: a MAC is one FLOP, a bilinear sample four.
"""

import math
from collections.abc import Callable
from typing import Any

from mmengine.analysis.jit_handles import get_shape

from ..ops.flops import FORMULAS, deformable_attention_flops, neighborhood_attention_flops


def _deformable_attention(inputs: list[Any], outputs: list[Any]) -> int:
    q, k, *_ = shapes = [get_shape(value) for value in inputs]
    sampled = 4 * math.prod(q[:-1]) * k[-2] if shapes[4] else 0  # the bias of every logit
    return deformable_attention_flops(*shapes) // 2 + sampled


def _neighborhood_attention(inputs: list[Any], outputs: list[Any]) -> int:
    return neighborhood_attention_flops(*(get_shape(value) for value in inputs)) // 2


_HANDLERS = {
    deformable_attention_flops: _deformable_attention,
    neighborhood_attention_flops: _neighborhood_attention,
}


def handlers() -> dict[str, Callable[[list[Any], list[Any]], int]]:
    """What mmengine calls for each of our custom operators, by name."""
    return {name: _HANDLERS[formula] for name, formula in FORMULAS.items() if formula in _HANDLERS}

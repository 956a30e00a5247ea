"""Lets mmengine's FLOP counter, and with it get_flops.py of every library, count our operators.

``mmengine.analysis`` traces a model and looks every operator up by name. A custom operator that it
does not find counts as zero: the CPU and GPU kernels would leave all attention out. They are added
to its table here, by its own rules: a multiply-add is one FLOP, a bilinear sample is four.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.analysis.jit_handles import get_shape

try:  # of every mmengine 0.x so far, but private
    from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_FLOP_OPS as HANDLERS
except ImportError:
    HANDLERS = {}


def deformable_attention(q: Sequence[int], k: Sequence[int], table: Sequence[int] | None) -> int:
    """Count the two matrix products, and the bias sampled for every logit if there is a table."""
    logits = math.prod(q[:-1]) * k[-2]
    return 2 * logits * q[-1] + (0 if table is None else 4 * logits)


def neighborhood_attention(q: Sequence[int], bias: Sequence[int]) -> int:
    """Count the two matrix products of each query with the K x K keys around it."""
    return 2 * math.prod(q) * ((bias[-1] + 1) // 2) ** 2


def _handler(count: Callable[..., int], *indices: int) -> Callable[[list[Any], list[Any]], int]:
    """Make a handler that hands the shapes of these inputs to ``count``."""
    return lambda inputs, outputs: count(*(get_shape(inputs[index]) for index in indices))


for backend in ('native', 'triton'):
    HANDLERS[f'dat_pp::{backend}_deformable_attention'] = _handler(deformable_attention, 0, 1, 4)
    HANDLERS[f'dat_pp::{backend}_neighborhood_attention'] = _handler(neighborhood_attention, 0, 3)

"""Tell PyTorch's FLOP counter about our operators, once it is imported.

:class:`torch.utils.flop_counter.FlopCounterMode` counts custom operators without a formula as
zero. Importing it here would import Triton.
"""

from types import ModuleType

import torch

from ..ops.flops import FORMULAS
from .imports import when_imported


def _register_formulas(counter: ModuleType) -> None:
    for qualname, formula in FORMULAS.items():
        namespace, name = qualname.split('::')
        packet = getattr(getattr(torch.ops, namespace), name)
        if packet not in counter.flop_registry:
            counter.register_flop_formula(packet)(formula)


when_imported('torch.utils.flop_counter', _register_formulas)

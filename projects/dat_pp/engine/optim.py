"""Mixed precision on CPUs."""

import contextlib
from collections.abc import Iterator

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Train under bfloat16 autocast on a CPU, where mmengine's ``AmpOptimWrapper`` refuses to.

    Arguments as in mmengine's ``OptimWrapper``. bfloat16 has the range of float32, so no loss is
    scaled. Any config can name it after ``import dat_pp``::

        custom_imports = dict(imports=['dat_pp'])
        optim_wrapper = dict(type='CPUAmpOptimWrapper', optimizer=...)
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield

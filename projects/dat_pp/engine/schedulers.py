"""The learning rate of the published ImageNet recipe."""

import math

from mmengine.optim import CosineAnnealingLR
from mmengine.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class LateCosineAnnealingLR(CosineAnnealingLR):
    """A half cosine over the whole training, of which a warm-up replaces the beginning.

    The published code counts the cosine from the very first iteration, so that after a warm-up
    until ``begin`` the rate goes on at that point of the curve, not at its top::

        lr(t) = eta_min + (lr - eta_min) (1 + cos(pi t / end)) / 2,    begin <= t < end

    Arguments as in mmengine's ``CosineAnnealingLR``; ``T_max`` is not used, ``end`` is needed (the
    runner fills in the length of the training).
    """

    def _get_value(self) -> list[float]:
        height = (1 + math.cos(math.pi * (self.begin + self.last_step) / self.end)) / 2
        values = []
        for base in self.base_values:
            low = self.eta_min if self.eta_min_ratio is None else self.eta_min_ratio * base
            values.append(low + (base - low) * height)
        return values

"""Learning rate schedule of the published ImageNet recipe."""

import math

from mmengine.optim import CosineAnnealingLR
from mmengine.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class LateCosineAnnealingLR(CosineAnnealingLR):
    """Cosine annealing over the whole training, whose beginning is replaced by a warm-up.

    The published code counts the cosine from the first iteration. After a warm-up that ends at
    ``begin``, the learning rate continues from that point of the curve and not from its top::

        lr(t) = eta_min + (lr - eta_min) (1 + cos(pi t / end)) / 2,    begin <= t < end

    Arguments are those of mmengine's ``CosineAnnealingLR``, except that ``T_max`` is not used and
    ``end`` is required; the runner sets it to the length of the training.
    """

    def _get_value(self) -> list[float]:
        factor = (1 + math.cos(math.pi * (self.begin + self.last_step) / self.end)) / 2
        values = []
        for base in self.base_values:
            low = self.eta_min if self.eta_min_ratio is None else self.eta_min_ratio * base
            values.append(low + (base - low) * factor)
        return values

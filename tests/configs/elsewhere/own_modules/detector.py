"""A detector of the project itself, made of mmdet's and our backbone."""

from mmdet.models.detectors import RetinaNet
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class TwiceRetinaNet(RetinaNet):
    """RetinaNet on the mean of the features of an image and of its negative."""

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(super().extract_feat(batch_inputs), super().extract_feat(-batch_inputs))
        return tuple((one + other) / 2 for one, other in pairs)

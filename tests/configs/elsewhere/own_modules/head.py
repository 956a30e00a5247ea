"""A decode head of the project itself."""

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class LastLevelHead(BaseDecodeHead):
    """Classifies the last feature map of the backbone."""

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.cls_seg(self._transform_inputs(inputs))

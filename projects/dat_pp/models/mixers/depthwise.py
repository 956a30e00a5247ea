"""Mixer "X": a depthwise convolution, the local operator of ConvNeXt."""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from ..arch import Arch


class DepthwiseConv(nn.Conv2d):
    """Depthwise K x K convolution (ConvNeXt, arXiv 2201.03545, section 2.6).

    Args:
        channels: Channels C of the feature map.
        kernel_size: Odd kernel size K.
        attn_drop, drop: Not used: there are no attention weights, and ConvNeXt's block has no
            dropout between convolution and norm.
    """

    def __init__(
        self, channels: int, kernel_size: int, attn_drop: float = 0.0, drop: float = 0.0
    ) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    @staticmethod
    def settings(arch: 'Arch', stage: int) -> dict[str, Any]:
        kernel_size = arch.window_size[stage]
        if kernel_size % 2 == 0:
            raise ValueError(
                f'window_size {kernel_size} in stage {stage} must be odd to be the kernel of '
                'mixer X'
            )
        return dict(channels=arch.embed_dims[stage], kernel_size=kernel_size)

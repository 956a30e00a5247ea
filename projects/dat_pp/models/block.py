"""Blocks of a stage: local perception unit, token mixer and FFN with their residuals."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers import DropPath, GELU2d, LayerNorm2d, LayerScale, PointwiseConv


class FFN(nn.Module):
    """Two 1x1 convolutions (a linear layer at each position) with a GELU between them."""

    def __init__(self, channels: int, ratio: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = PointwiseConv(channels, ratio * channels)
        self.act = GELU2d()
        self.fc2 = PointwiseConv(ratio * channels, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class ConvFFN(FFN):
    """FFN with a residual depthwise 3x3 convolution of the hidden features (DAT++, section 3.4)."""

    def __init__(self, channels: int, ratio: int, drop: float = 0.0) -> None:
        super().__init__(channels, ratio, drop)
        hidden = ratio * channels
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.fc1(x))
        return self.drop(self.fc2(self.act(x + self.dwconv(x))))


def _local_perception_unit(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


class TransformerBlock(nn.Module):
    """``x + lpu(x)``, then ``x + mixer(LN(x))``, then ``x + ffn(LN(x))`` (DAT++, figure 4).

    (B, C, H, W) -> (B, C, H, W).

    Args:
        channels: Channels C of the feature map.
        mixer: Token mixer, which keeps the shape.
        ffn: FFN, which keeps the shape.
        lpu: Whether there is a local perception unit, a depthwise 3x3 convolution.
        layer_scale: Initial value of the LayerScale of mixer and FFN; none if 0 or below.
        drop_path: Stochastic depth rate of mixer and FFN.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        ffn: nn.Module,
        lpu: bool = False,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.lpu = _local_perception_unit(channels) if lpu else None
        self.drop_path = DropPath(drop_path)
        self.norm1 = LayerNorm2d(channels)
        self.mixer = mixer
        self.norm2 = LayerNorm2d(channels)
        self.ffn = ffn
        scaled = layer_scale > 0
        self.scale1 = LayerScale(channels, layer_scale) if scaled else nn.Identity()
        self.scale2 = LayerScale(channels, layer_scale) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.lpu is not None:
            x = x + self.lpu(x)
        x = x + self.drop_path(self.scale1(self.mixer(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.ffn(self.norm2(x))))


class ConvNeXtBlock(nn.Module):
    """``x + lpu(x)``, then ``x + ffn(LN(mixer(x)))``: one norm and one residual, as in ConvNeXt.

    (B, C, H, W) -> (B, C, H, W). Arguments as of :class:`TransformerBlock`; ConvNeXt's mixer is a
    depthwise convolution, and there is no LayerScale.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        ffn: nn.Module,
        lpu: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.lpu = _local_perception_unit(channels) if lpu else None
        self.drop_path = DropPath(drop_path)
        self.mixer = mixer
        self.norm = LayerNorm2d(channels)
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        if self.lpu is not None:
            x = x + self.lpu(x)
        return x + self.drop_path(self.ffn(self.norm(self.mixer(x))))


class Stage(nn.Sequential):
    """The blocks of a stage.

    Args:
        blocks: The blocks, in order.
        with_cp: Whether to save memory in training by keeping only the input of each block and
            recomputing the rest in the backward pass.
    """

    def __init__(self, *blocks: nn.Module, with_cp: bool = False) -> None:
        super().__init__(*blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        recompute = self.with_cp and torch.is_grad_enabled()
        for block in self:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x

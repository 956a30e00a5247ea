"""One block of a stage: local perception unit, token mixer, FFN and their residuals."""

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
    """FFN with a residual depthwise 3x3 convolution of the hidden map (DAT++, section 3.4)."""

    def __init__(self, channels: int, ratio: int, drop: float = 0.0) -> None:
        super().__init__(channels, ratio, drop)
        hidden = ratio * channels
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.fc1(x))
        return self.drop(self.fc2(self.act(x + self.dwconv(x))))


class CheckpointedBlock(nn.Module):
    """Base of the blocks: the local perception unit, then ``branches``, recomputed on request.

    Args:
        channels: Channels C of the map.
        lpu: Whether to add a depthwise 3x3 convolution of the input first.
        drop_path: Stochastic depth rate of the block's branches.
        with_cp: Whether to save memory in training by recomputing the block in the backward pass.
    """

    def __init__(self, channels: int, lpu: bool, drop_path: float, with_cp: bool) -> None:
        super().__init__()
        self.lpu = nn.Conv2d(channels, channels, 3, padding=1, groups=channels) if lpu else None
        self.drop_path = DropPath(drop_path)
        self.with_cp = with_cp

    def branches(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _forward(self, x: Tensor) -> Tensor:
        if self.lpu is not None:
            x = x + self.lpu(x)
        return self.branches(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)


class TransformerBlock(CheckpointedBlock):
    """``x + mixer(LN(x))``, then ``x + ffn(LN(x))`` (DAT++, figure 4).

    Args:
        channels, lpu, drop_path, with_cp: See :class:`CheckpointedBlock`.
        mixer: Token mixer, (B, C, H, W) -> (B, C, H, W).
        ffn: FFN, same shapes.
        layer_scale: Initial value of the branches' LayerScale; none if 0 or below.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        ffn: nn.Module,
        lpu: bool = False,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__(channels, lpu, drop_path, with_cp)
        self.norm1 = LayerNorm2d(channels)
        self.mixer = mixer
        self.norm2 = LayerNorm2d(channels)
        self.ffn = ffn
        scaled = layer_scale > 0
        self.scale1 = LayerScale(channels, layer_scale) if scaled else nn.Identity()
        self.scale2 = LayerScale(channels, layer_scale) if scaled else nn.Identity()

    def branches(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.scale1(self.mixer(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.ffn(self.norm2(x))))


class ConvNeXtBlock(CheckpointedBlock):
    """``x + ffn(LN(dwconv(x)))``: mixer "X", one norm and one residual (ConvNeXt).

    Args:
        channels, lpu, drop_path, with_cp: See :class:`CheckpointedBlock`.
        kernel_size: Odd kernel of the depthwise convolution.
        ffn: FFN, (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        ffn: nn.Module,
        lpu: bool = False,
        drop_path: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__(channels, lpu, drop_path, with_cp)
        self.mixer = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels
        )
        self.norm = LayerNorm2d(channels)
        self.ffn = ffn

    def branches(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.ffn(self.norm(self.mixer(x))))

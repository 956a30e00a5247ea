"""Layers that the stem, the blocks and the token mixers share.

Feature maps are (B, C, H, W) tensors in channels-last memory format, so their view (B, H, W, C) is
contiguous. Pointwise layers work on that view; other memory formats give the same result, slower.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, H, W) feature map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GELU2d(nn.GELU):
    """GELU of a (B, C, H, W) feature map; the fast CPU kernel takes contiguous tensors only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PointwiseConv(nn.Conv2d):
    """1x1 convolution of a (B, C, H, W) feature map, as a matrix product."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return out.permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    """Learned scale per channel of a (B, C, H, W) feature map (CaiT, arXiv 2103.17239)."""

    def __init__(self, channels: int, init_value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


class DropPath(nn.Module):
    """Stochastic depth: in training, drop the whole input of a sample with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class PatchConv(nn.Conv2d):
    """Convolution without padding, except for inputs smaller than the kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_bottom_right(x, *self.kernel_size))


def named_sequential(**modules: nn.Module) -> nn.Sequential:
    """``nn.Sequential`` with the keywords as names."""
    return nn.Sequential(OrderedDict(modules))


def pad_bottom_right(x: Tensor, height: int, width: int) -> Tensor:
    """Zero-pad a feature map at the bottom and right to at least ``height`` x ``width``."""
    missing = max(0, height - x.shape[2]), max(0, width - x.shape[3])
    return F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, C, H, W) -> (B, heads, H, W, C / heads)."""
    return x.unflatten(1, (heads, -1)).permute(0, 1, 3, 4, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, H, W, d) -> (B, heads * d, H, W)."""
    return x.permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2)


def resize_table(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bias tables (heads, rows, columns) bicubically to ``size``, as the published code."""
    dtype = torch.promote_types(table.dtype, torch.float32)
    return F.interpolate(table[None].to(dtype), size=size, mode='bicubic')[0].to(table.dtype)

"""Mixers "L" and "S": self-attention in local and in shifted windows."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...ops import attention
from ..layers import pad_bottom_right, resize_table

if TYPE_CHECKING:
    from ..arch import Arch


class WindowAttention(nn.Module):
    """Self-attention within windows of w x w positions (Swin, arXiv 2103.14030, section 3.2).

    (B, C, H, W) -> (B, C, H, W). A feature map whose sides are no multiples of w is zero-padded at
    the bottom and right, and the padding takes part as keys, as in the published code.

    Args:
        channels: Channels C of the feature map.
        num_heads: Attention heads; divides ``channels``.
        window_size: Side w of a window.
        attn_drop: Dropout of the attention weights.
        drop: Dropout of the output.
    """

    relative_position_index: Tensor
    shifted = False
    """Whether windows are shifted cyclically by ``ceil(w / 2)``."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int,
        attn_drop: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = math.ceil(window_size / 2) if self.shifted else 0
        self.attn_drop = attn_drop
        self.proj_qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = nn.Linear(channels, channels)
        self.drop = nn.Dropout(drop)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)
        self.register_buffer(
            'relative_position_index', relative_position_index(window_size), persistent=False
        )

    @staticmethod
    def settings(arch: 'Arch', stage: int) -> dict[str, Any]:
        return dict(
            channels=arch.embed_dims[stage],
            num_heads=arch.num_heads[stage],
            window_size=arch.window_size[stage],
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        w = self.window_size
        rows, columns = math.ceil(height / w), math.ceil(width / w)
        x = pad_bottom_right(x, rows * w, columns * w).permute(0, 2, 3, 1)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        qkv = self.proj_qkv(x).unflatten(-1, (3, self.num_heads, -1))
        # (B, rows, w, columns, w, 3, heads, d) -> (B, rows, columns, heads, w * w, d) each. The
        # matrix products of attention need this memory layout, so this is the only copy.
        qkv = qkv.unflatten(2, (columns, w)).unflatten(1, (rows, w))
        q, k, v = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if self.shift:
            bias = bias + shift_mask(rows, columns, w, self.shift, bias)
        x = attention(q, k, v, bias, self.attn_drop if self.training else 0.0)

        # (B, rows, columns, heads, w * w, d) -> (B, rows, w, columns, w, heads, d)
        x = x.unflatten(4, (w, w)).permute(0, 1, 4, 2, 5, 3, 6)
        x = x.flatten(5).flatten(3, 4).flatten(1, 2)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return self.drop(self.proj_out(x[:, :height, :width])).permute(0, 3, 1, 2)

    def resize_tables(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Resize a table of another window size in ``state_dict``."""
        name = prefix + 'relative_position_bias_table'
        table = state_dict.get(name)
        if table is None or len(table) == len(self.relative_position_bias_table):
            return
        side = math.isqrt(len(table))
        if side**2 == len(table):
            size = 2 * self.window_size - 1
            resized = resize_table(table.T.reshape(-1, side, side), (size, size))
            state_dict[name] = resized.flatten(1).T.contiguous()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        self.resize_tables(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ShiftedWindowAttention(WindowAttention):
    """Window attention whose windows are shifted cyclically by ``ceil(w / 2)`` and masked."""

    shifted = True

    @staticmethod
    def settings(arch: 'Arch', stage: int) -> dict[str, Any]:
        if arch.window_size[stage] < 2:
            raise ValueError(f'window_size 1 in stage {stage} cannot be shifted (mixer S)')
        return WindowAttention.settings(arch, stage)


def relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for every (query, key) pair of a window, (w * w, w * w)."""
    axis = torch.arange(window_size)
    y, x = (t.flatten() for t in torch.meshgrid(axis, axis, indexing='ij'))
    dy = y[:, None] - y[None] + window_size - 1
    dx = x[:, None] - x[None] + window_size - 1
    return dy * (2 * window_size - 1) + dx


def shift_mask(rows: int, columns: int, window_size: int, shift: int, like: Tensor) -> Tensor:
    """Mask of shifted windows: -100 between positions of different regions (Swin, figure 4).

    Returns:
        (rows, columns, 1, w * w, w * w), dtype and device of ``like``.
    """

    def regions(windows: int) -> Tensor:  # (windows, w), cut at -w and -shift
        position = torch.arange(windows * window_size, device=like.device)
        first, second = len(position) - window_size, len(position) - shift
        region = (position >= first).long() + (position >= second).long()
        return region.view(windows, window_size)

    y, x = regions(rows), regions(columns)
    region = 3 * y[:, None, :, None] + x[None, :, None, :]  # (rows, columns, w, w)
    region = region.flatten(2)[:, :, None]
    different = region.unsqueeze(-1) != region.unsqueeze(-2)
    return torch.zeros_like(different, dtype=like.dtype).masked_fill(different, -100.0)

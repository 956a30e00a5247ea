"""Mixer "N": neighborhood attention with a relative position bias."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...ops import neighborhood_attention
from ..layers import pad_bottom_right

if TYPE_CHECKING:
    from ..arch import Arch


class NeighborhoodAttention(nn.Module):
    """Every query attends to the K x K positions around it (DAT++, section 3.3).

    (B, C, H, W) -> (B, C, H, W). A feature map smaller than K x K is zero-padded before the
    projections, and the padding takes part as keys, as in the published code.

    Args:
        channels: Channels C of the feature map.
        num_heads: Attention heads; divides ``channels``.
        kernel_size: Odd side K of the neighborhood.
        attn_drop: Dropout of the attention weights.
        drop: Dropout of the output.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        kernel_size: int,
        attn_drop: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.drop = nn.Dropout(drop)
        self.rpb = nn.Parameter(torch.empty(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        nn.init.trunc_normal_(self.rpb, std=0.02)

    @staticmethod
    def settings(arch: 'Arch', stage: int) -> dict[str, Any]:
        kernel_size = arch.neighborhood_kernel_size[stage]
        if kernel_size % 2 == 0:
            raise ValueError(f'neighborhood_kernel_size {kernel_size} in stage {stage} must be odd')
        return dict(
            channels=arch.embed_dims[stage],
            num_heads=arch.num_heads[stage],
            kernel_size=kernel_size,
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = pad_bottom_right(x, self.kernel_size, self.kernel_size)
        qkv = self.qkv(x.permute(0, 2, 3, 1)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5)  # (B, heads, H, W, d) each
        x = neighborhood_attention(q, k, v, self.rpb, self.attn_drop if self.training else 0.0)
        x = x[:, :, :height, :width].permute(0, 2, 3, 1, 4).flatten(3)  # (B, H, W, C)
        return self.drop(self.proj(x)).permute(0, 3, 1, 2)

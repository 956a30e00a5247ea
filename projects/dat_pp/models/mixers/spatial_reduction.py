"""Mixer "P": spatial-reduction attention of PVT."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...ops import attention
from ..layers import (
    LayerNorm2d,
    PatchConv,
    PointwiseConv,
    merge_heads,
    named_sequential,
    split_heads,
)

if TYPE_CHECKING:
    from ..arch import Arch


class SpatialReductionAttention(nn.Module):
    """Every query attends to all positions of a downsampled feature map.

    (B, C, H, W) -> (B, C, H, W). See PVT, arXiv 2102.12122, section 3.3.

    Args:
        channels: Channels C of the feature map.
        num_heads: Attention heads; divides ``channels``.
        ratio: Kernel size and stride of the downsampling convolution; 1 for none.
        attn_drop: Dropout of the attention weights.
        drop: Dropout of the output.
    """

    def __init__(
        self, channels: int, num_heads: int, ratio: int, attn_drop: float = 0.0, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.q = PointwiseConv(channels, channels)
        self.kv = PointwiseConv(channels, 2 * channels)
        self.proj = PointwiseConv(channels, channels)
        self.drop = nn.Dropout(drop)
        self.reduction: nn.Module = nn.Identity()
        if ratio > 1:
            conv = PatchConv(channels, channels, ratio, ratio)
            self.reduction = named_sequential(conv=conv, norm=LayerNorm2d(channels))

    @staticmethod
    def settings(arch: 'Arch', stage: int) -> dict[str, Any]:
        return dict(
            channels=arch.embed_dims[stage],
            num_heads=arch.num_heads[stage],
            ratio=arch.spatial_reduction_ratios[stage],
        )

    def forward(self, x: Tensor) -> Tensor:
        q = split_heads(self.q(x), self.num_heads)
        k, v = (split_heads(t, self.num_heads) for t in self.kv(self.reduction(x)).chunk(2, 1))
        out = attention(
            q.flatten(2, 3),
            k.flatten(2, 3),
            v.flatten(2, 3),
            dropout_p=self.attn_drop if self.training else 0.0,
        )
        return self.drop(self.proj(merge_heads(out.view(q.shape))))

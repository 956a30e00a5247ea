"""Token mixers: one module each, (B, C, H, W) -> (B, C, H, W)."""

from .deformable import DeformableAttention
from .neighborhood import NeighborhoodAttention
from .spatial_reduction import SpatialReductionAttention
from .window import WindowAttention

__all__ = [
    'DeformableAttention',
    'NeighborhoodAttention',
    'SpatialReductionAttention',
    'WindowAttention',
]

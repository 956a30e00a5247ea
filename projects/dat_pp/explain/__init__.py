"""What the attention of a model did: a trace of positions and weights, and figures of it."""

from .blocks import Block, DeformableBlock, NeighborhoodBlock
from .geometry import ImageGeometry, MapGeometry
from .tracer import Trace, find_backbone, trace

__all__ = [
    'Block',
    'DeformableBlock',
    'ImageGeometry',
    'MapGeometry',
    'NeighborhoodBlock',
    'Trace',
    'find_backbone',
    'trace',
]

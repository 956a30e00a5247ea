"""What the attention of a model did: a trace of positions and weights, and figures of it.

:func:`trace` needs PyTorch only; the figures need matplotlib, which is imported when one of their
functions is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .blocks import Block, DeformableBlock, NeighborhoodBlock
from .geometry import ImageGeometry, MapGeometry
from .tracer import Trace, find_backbone, trace

if TYPE_CHECKING:
    from .figures import heat_figure, heat_map, points_figure, queries_figure, strongest
    from .gallery import gallery_figure
    from .output import draw, save, trace_arrays

__all__ = [
    'Block',
    'DeformableBlock',
    'ImageGeometry',
    'MapGeometry',
    'NeighborhoodBlock',
    'Trace',
    'draw',
    'find_backbone',
    'gallery_figure',
    'heat_figure',
    'heat_map',
    'points_figure',
    'queries_figure',
    'save',
    'strongest',
    'trace',
    'trace_arrays',
]

_MODULES = {
    **dict.fromkeys(
        ('heat_figure', 'heat_map', 'points_figure', 'queries_figure', 'strongest'), 'figures'
    ),
    'gallery_figure': 'gallery',
    **dict.fromkeys(('draw', 'save', 'trace_arrays'), 'output'),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        return getattr(import_module(f'.{_MODULES[name]}', __name__), name)
    except ModuleNotFoundError as error:
        message = f'dat_pp.explain.{name} needs {error.name}: pip install "dat_pp[explain]"'
        raise ImportError(message) from error

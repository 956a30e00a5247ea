"""Write the figures of an image, and the numbers behind them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .figures import (
    Pixel,
    deformable_blocks,
    heat_figure,
    points_figure,
    queries_figure,
    strongest,
)
from .panels import STYLE
from .tracer import Trace

FORMATS = ('png', 'pdf', 'svg')


def file_names(format: str = 'png') -> list[str]:
    """Names of the files that :func:`draw` writes."""
    return [*(f'{name}.{format}' for name in ('points', 'queries', 'heat')), 'trace.npz']


def draw(
    trace: Trace,
    rgb: NDArray,
    out_dir: str | Path,
    image: int = 0,
    queries: Sequence[Pixel] | None = None,
    blocks: Sequence[str] | None = None,
    by_head: bool = False,
    format: str = 'png',
    title: str = '',
) -> list[Path]:
    """Write ``points``, ``queries`` and ``heat`` of an image as figures, and ``trace.npz``.

    Args:
        trace: The trace.
        rgb: The image before resizing, RGB (H, W, 3) or gray (H, W), uint8.
        out_dir: Folder, made if missing; files of these names are replaced.
        image: Index of the image in the batch.
        queries: Pixels (y, x) of the image. Default: those that receive most attention.
        blocks: Names of deformable blocks, ``'STAGE.INDEX'``. Default: the last of each of the
            last two stages.
        by_head: Whether ``queries`` has a panel per head.
        format: ``'png'``, ``'pdf'`` or ``'svg'``.
        title: First line of the figures.

    Returns:
        The files.

    Raises:
        ValueError: A block is not deformable, or a query is outside of the image.
    """
    chosen = deformable_blocks(trace, blocks)
    if queries is None:
        queries = strongest(trace, chosen, image)
    common: dict[str, Any] = dict(
        trace=trace, rgb=rgb, image=image, blocks=[b.name for b in chosen], title=title
    )
    figures = [
        points_figure(**common),
        queries_figure(**common, queries=queries, by_head=by_head),
        heat_figure(**common),
    ]
    arrays = trace_arrays(trace, queries, image)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in file_names(format)]
    for figure, path in zip(figures, paths):
        save(figure, path)
    np.savez_compressed(paths[-1], **arrays)  # type: ignore[arg-type]
    return paths


@matplotlib.rc_context(STYLE)
def save(figure: Figure, path: str | Path) -> None:
    """Write a figure; the suffix of the path says how. The same figure gives the same bytes."""
    suffix = Path(path).suffix[1:]
    undated = {'pdf': dict(CreationDate=None), 'svg': dict(Date=None)}.get(suffix)
    with matplotlib.rc_context({'svg.hashsalt': 'dat_pp'}):
        figure.savefig(path, metadata=undated)


def trace_arrays(trace: Trace, queries: Sequence[Pixel], image: int = 0) -> dict[str, NDArray]:
    """What a trace says of an image and some queries in it, as arrays by name.

    Args:
        trace: The trace.
        queries: Pixels (y, x) of the original image, Q of them.
        image: Index of the image in the batch.

    Returns:
        ``size``, ``queries`` (Q, 2), ``blocks`` (names of the blocks), and for every block
        ``BLOCK/cells`` (Q, 2), row and column of the queries, and ``BLOCK/attention``, (heads, Q,
        N) or (heads, Q, K, K). Deformable blocks have ``reference``, ``positions``,
        ``positions_in_pixels`` (g, N, 2) and ``received`` (heads, N) beside them, neighborhood
        blocks ``neighbors`` (Q, K, K, 2).
    """
    attentive = [*trace.deformable, *trace.neighborhood]
    arrays: dict[str, Any] = {
        'size': trace.images[image].size,
        'queries': np.asarray(queries, float).reshape(-1, 2),
        'blocks': [block.name for block in trace if block in attentive],
    }
    for block in attentive:
        cells = [block.geometry.to_cell(query, image) for query in queries]
        arrays[f'{block.name}/cells'] = np.asarray(cells).reshape(-1, 2)
        arrays[f'{block.name}/attention'] = block.attention(cells)[image]
    for block in trace.deformable:
        for name in ('reference', 'positions', 'positions_in_pixels'):
            arrays[f'{block.name}/{name}'] = getattr(block, name)[image]
        arrays[f'{block.name}/received'] = block.received(inside=True)[image]
    for near in trace.neighborhood:
        arrays[f'{near.name}/neighbors'] = near.neighbors(arrays[f'{near.name}/cells'])
    return {k: v.cpu().numpy() if hasattr(v, 'cpu') else np.asarray(v) for k, v in arrays.items()}

"""Figures of a trace, as in the papers: deformed points, what queries attend to, and heat maps.

Each function takes a trace and one of its images as it was before resizing, and returns a
:class:`matplotlib.figure.Figure`, whose ``savefig`` writes PNG, PDF or SVG.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from .blocks import DeformableBlock
from .panels import STYLE, Areas, PanelGrid
from .tracer import Trace

Pixel = tuple[float, float]
COLORS = ('#e69f00', '#56b4e9', '#009e73', '#f0e442', '#d55e00', '#cc79a7', '#0072b2', '#ffffff')
"""One per group, repeated if there are more: Okabe and Ito's, which color-blind people tell apart;
white stands for their black, which is lost on photographs."""
HEAT, WEIGHT = 'inferno', 'plasma'
QUERY = '#00e5ff'
MOST_COLUMNS = 4


def default_blocks(trace: Trace) -> list[DeformableBlock]:
    """The last deformable block of each of the last two stages that have one.

    Raises:
        ValueError: The model has no deformable attention.
    """
    last = {block.stage: block for block in trace.deformable}
    if not last:
        raise ValueError('the model has no block with deformable attention')
    return [last[stage] for stage in sorted(last)[-2:]]


def deformable_blocks(trace: Trace, names: Sequence[str] | None) -> list[DeformableBlock]:
    """The blocks of these names (``'STAGE.INDEX'``), or the last of each of the last two stages.

    Raises:
        ValueError: There is no such block, or it is not deformable.
    """
    if names is None:
        return default_blocks(trace)
    found = []
    for name in names:
        block = trace.block(name)
        if not isinstance(block, DeformableBlock):
            choices = ', '.join(b.name for b in trace.deformable) or 'none'
            raise ValueError(
                f'block {name} is {block.mixer}, not deformable attention; deformable: {choices}'
            )
        found.append(block)
    return found


def attention_received(block: DeformableBlock, image: int = 0) -> Tensor:
    """Attention that each sample receives from the image, (g, N): 1 if all receive the same.

    The mean over the heads of a group. Queries in padding are left out.
    """
    received = block.received(inside=True)[image].unflatten(0, (block.groups, -1)).mean(1)
    return received / received.mean(1, keepdim=True).clamp(min=1e-12)


def heat_map(
    trace: Trace, blocks: Sequence[DeformableBlock], image: int = 0, side: int = 240
) -> NDArray[np.float64]:
    """Density of received attention over what the model saw of an image; its mean is 1.

    Every sample spreads what it receives with a Gaussian of 0.4 times the distance of the
    reference points; the densities of the blocks are averaged.

    Args:
        trace: The trace.
        blocks: Blocks of the trace.
        image: Index in the batch.
        side: Longer side of the result in pixels.
    """
    top, left, bottom, right = trace.images[image].seen
    height, width = bottom - top, right - left
    rows, columns = (max(2, round(side * n / max(height, width))) for n in (height, width))
    y = top + (np.arange(rows) + 0.5) * height / rows
    x = left + (np.arange(columns) + 0.5) * width / columns
    total = np.zeros((rows, columns))
    for block in blocks:
        weight = attention_received(block, image).flatten().double().cpu().numpy()
        points = block.positions_in_pixels[image].flatten(0, 1).cpu().numpy()
        spread = [
            max(1e-6, 0.4 * block.geometry.stride * size / n / factor)
            for size, n, factor in zip(block.size, block.grid, trace.images[image].scale)
        ]
        near = [
            np.exp(-0.5 * ((axis[None] - points[:, i, None]) / spread[i]) ** 2)
            for i, axis in enumerate((y, x))
        ]
        density = (weight[:, None] * near[0]).T @ near[1]
        total += density / max(density.mean(), 1e-12)
    return total / len(blocks)


def strongest(
    trace: Trace, blocks: Sequence[DeformableBlock], image: int = 0, count: int = 3
) -> list[Pixel]:
    """Pixels (y, x) that receive most attention, a quarter of the shorter side apart or more."""
    heat = heat_map(trace, blocks, image)
    top, left, bottom, right = trace.images[image].seen
    size = np.array([bottom - top, right - left])
    y, x = np.indices(heat.shape)
    found: list[Pixel] = []
    while len(found) < count and np.isfinite(heat.max()):
        row, column = np.unravel_index(int(heat.argmax()), heat.shape)
        pixel = (np.array([row, column]) + 0.5) * size / heat.shape + (top, left)
        found.append((float(pixel[0]), float(pixel[1])))
        cell = size / heat.shape
        distance = np.hypot((y - row) * cell[0], (x - column) * cell[1])
        heat[distance < size.min() / 4] = -np.inf
    return found


@matplotlib.rc_context(STYLE)
def points_figure(
    trace: Trace,
    rgb: NDArray,
    image: int = 0,
    blocks: Sequence[str] | None = None,
    title: str = '',
) -> Figure:
    """Reference points and where they move, a panel per group; size is attention received.

    Args:
        trace: The trace.
        rgb: The image before resizing, RGB (H, W, 3) or gray (H, W), uint8.
        image: Index of the image in the batch.
        blocks: Names of deformable blocks, ``'STAGE.INDEX'``; default: the last of each of the last
            two stages.
        title: First line of the figure.
    """
    chosen = deformable_blocks(trace, blocks)
    columns = min(MOST_COLUMNS, max(block.groups for block in chosen))
    layout = [-(-block.groups // columns) for block in chosen]
    grid = PanelGrid.make(trace, rgb, image, sum(layout), columns, title)
    sizes = Areas(grid, max(block.grid[1] for block in chosen))
    for block, first in zip(chosen, np.cumsum([0, *layout])):
        received = attention_received(block, image).cpu().numpy()
        # Where the clamping of positions would put reference points that lie beyond the map.
        start = block.in_pixels(block.reference.clamp(-1, 1))[image].cpu().numpy()
        end = block.positions_in_pixels[image].cpu().numpy()
        for group in range(block.groups):
            axes = grid.panel(first + group // columns, group % columns, fade=0.25)
            of = f', group {group + 1} of {block.groups}' if block.groups > 1 else ''
            axes.set_title(f'block {block.name}{of}')
            _draw_points(
                axes, start[group], end[group], sizes.of(received[group]),
                COLORS[group % len(COLORS)],
            )  # fmt: skip
    marker: Any = dict(ls='', color='#444444', mew=0.8)
    handles = [Line2D([], [], marker='o', ms=4, mfc='none', label='reference point', **marker)]
    handles += [
        Line2D([], [], marker='o', ms=float(np.sqrt(sizes.of(np.array(x)))), label=label, **marker)
        for x, label in ((1.0, 'sample with mean attention'), (3.0, '3 times the mean'))
    ]
    grid.legend(handles)
    return grid.figure


@matplotlib.rc_context(STYLE)
def queries_figure(
    trace: Trace,
    rgb: NDArray,
    queries: Sequence[Pixel] | None = None,
    image: int = 0,
    blocks: Sequence[str] | None = None,
    by_head: bool = False,
    title: str = '',
) -> Figure:
    """What queries (stars) attend to (circles, sized and colored by weight), a row per block.

    Args:
        trace, rgb, image, blocks, title: See :func:`points_figure`.
        queries: Pixels (y, x) of the original image; default: :func:`strongest`. The star is drawn
            at the center of the cell of the block's map that is nearest.
        by_head: A panel per head, and a row per block and query; otherwise heads are averaged.

    Raises:
        ValueError: A query is outside of the image.
    """
    chosen = deformable_blocks(trace, blocks)
    queries = strongest(trace, chosen, image) if queries is None else list(queries)
    panels = []  # (first row, column, title, block, cell, weights by group)
    columns = min(MOST_COLUMNS, max(b.heads for b in chosen) if by_head else len(queries))
    row = 0
    for block in chosen:
        cells = [block.geometry.to_cell(query, image) for query in queries]
        weights = block.attention(cells)[image].unflatten(0, (block.groups, -1))  # (g, h / g, Q, N)
        for number, cell in enumerate(cells):
            mine = weights[:, :, number]
            if not by_head:
                place = row + number // columns, number % columns
                label = f'block {block.name}, query {number + 1}'
                panels.append((*place, label, block, cell, mine.mean(1)))
                continue
            for head in range(block.heads):
                group, within = divmod(head, block.heads // block.groups)
                one = torch.zeros_like(mine[:, 0])
                one[group] = mine[group, within]
                label = f'block {block.name}, query {number + 1}, head {head + 1}'
                panels.append((row + head // columns, head % columns, label, block, cell, one))
            row += -(-block.heads // columns)
        if not by_head:
            row += -(-len(queries) // columns)
    grid = PanelGrid.make(trace, rgb, image, row, columns, title)
    for at, column, label, block, cell, weights in panels:
        axes = grid.panel(at, column, fade=0.35)
        axes.set_title(label)
        points = block.positions_in_pixels[image].flatten(0, 1).cpu().numpy()
        weight = weights.flatten().cpu().numpy()
        relative = weight / max(weight.max(), 1e-12)
        order = relative.argsort()  # the strongest on top
        spacing = 72 * grid.width / block.grid[1] / block.groups**0.5
        axes.scatter(
            points[order, 1], points[order, 0], s=1 + min(90, spacing**2) * relative[order],
            c=relative[order], cmap=WEIGHT, vmin=0, vmax=1, alpha=0.85, lw=0.4, edgecolors='white',
            zorder=3,
        )  # fmt: skip
        y, x = block.queries_in_pixels([cell])[image, 0].tolist()
        axes.plot(x, y, '*', ms=11, color=QUERY, mec='black', mew=0.7, zorder=4)
    grid.colorbar(WEIGHT, 0, 1, 'attention weight, relative to the largest')
    return grid.figure


@matplotlib.rc_context(STYLE)
def heat_figure(
    trace: Trace,
    rgb: NDArray,
    image: int = 0,
    blocks: Sequence[str] | None = None,
    title: str = '',
) -> Figure:
    """Received attention over the image, a panel per block beside the image itself.

    Args:
        trace, rgb, image, blocks, title: See :func:`points_figure`.
    """
    chosen = deformable_blocks(trace, blocks)
    panels = len(chosen) + 1
    columns = min(MOST_COLUMNS, panels)
    rows = -(-panels // columns)
    grid = PanelGrid.make(trace, rgb, image, rows, columns, title)
    grid.panel(0, 0).set_title('image')
    heats = [heat_map(trace, [block], image) for block in chosen]
    high = max(2.0, max(float(np.percentile(heat, 99.8)) for heat in heats))
    for number, (block, heat) in enumerate(zip(chosen, heats), start=1):
        axes = grid.panel(number // columns, number % columns, gray=True)
        axes.set_title(f'block {block.name}')
        draw_heat(axes, heat, trace, image, high)
    grid.colorbar(HEAT, 0, high, 'attention received, relative to the mean')
    return grid.figure


def _draw_points(
    axes: Axes, start: NDArray, end: NDArray, area: NDArray, color: str, arrows: bool = True
) -> None:
    """Reference points, arrows to the samples, and the samples with these areas in points^2."""
    if arrows:
        axes.scatter(
            start[:, 1], start[:, 0], s=9, facecolors='none', edgecolors='white', lw=1.6, zorder=2
        )
        axes.scatter(
            start[:, 1], start[:, 0], s=9, facecolors='none', edgecolors='#444444', lw=0.7, zorder=2
        )
        moved = end - start
        for width, shade in ((0.010, 'white'), (0.005, '#333333')):
            axes.quiver(
                start[:, 1], start[:, 0], moved[:, 1], moved[:, 0], angles='xy', scale_units='xy',
                scale=1, width=width, headwidth=3.2, headlength=3.6, headaxislength=3.2,
                color=shade, zorder=2.5,
            )  # fmt: skip
    axes.scatter(
        end[:, 1], end[:, 0], s=area, color=color, alpha=0.9, lw=0.6, edgecolors='black', zorder=3
    )


def draw_heat(axes: Axes, heat: NDArray, trace: Trace, image: int, high: float) -> None:
    """Lay a heat map over the image of a panel."""
    top, left, bottom, right = trace.images[image].seen
    limits = axes.axis()
    axes.imshow(
        heat, cmap=HEAT, vmin=0, vmax=high, alpha=0.62, extent=(left, right, bottom, top),
        interpolation='bilinear', zorder=1,
    )  # fmt: skip
    axes.axis(limits)

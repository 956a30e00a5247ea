"""One figure of several images: what the deformable attention of a model looks at in each."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .figures import COLORS, HEAT, attention_received, deformable_blocks, draw_heat, heat_map
from .panels import STYLE, Areas, PanelGrid
from .tracer import Trace


@matplotlib.rc_context(STYLE)
def gallery_figure(
    trace: Trace,
    images: Sequence[NDArray],
    titles: Sequence[str] = (),
    blocks: Sequence[str] | None = None,
    columns: int = 4,
    title: str = '',
) -> Figure:
    """Draw each image of a batch beside where its samples lie and what they receive.

    The heat map is that of received attention, averaged over the blocks. Circles are the samples
    of the blocks, colored by block and sized by what they receive.

    Args:
        trace: A trace of a batch.
        images: The images as they were before resizing, RGB (H, W, 3) or gray (H, W), uint8, of one
            size.
        titles: A line above each image.
        blocks: Names of deformable blocks, ``'STAGE.INDEX'``. Default: all.
        columns: Images per row.
        title: First line of the figure.
    """
    names = [block.name for block in trace.deformable] if blocks is None else blocks
    chosen = deformable_blocks(trace, names)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    grid = PanelGrid.make(trace, images[0], 0, rows, 2 * columns, title, panel=1.15)
    areas = Areas(grid, 2 * max(block.grid[1] for block in chosen))
    heats = [heat_map(trace, chosen, index) for index in range(len(images))]
    high = max(2.0, max(float(np.percentile(heat, 99.8)) for heat in heats))
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left = grid.panel(row, 2 * column, rgb=image)
        if index < len(titles):
            left.set_title(titles[index], loc='left')
        right = grid.panel(row, 2 * column + 1, gray=True, rgb=image)
        draw_heat(right, heats[index], trace, index, high)
        for number, block in enumerate(chosen):
            points = block.positions_in_pixels[index].flatten(0, 1).cpu().numpy()
            area = areas.of(attention_received(block, index).flatten().cpu().numpy())
            right.scatter(
                points[:, 1], points[:, 0], s=area, color=COLORS[number % len(COLORS)], alpha=0.85,
                lw=0.4, edgecolors='black', zorder=3, label=f'samples of block {block.name}',
            )  # fmt: skip
    handles, labels = grid.panels[0, 1].get_legend_handles_labels()
    legend = grid.figure.legend(
        handles, labels, loc='outside lower center', ncols=len(handles), frameon=False, fontsize=7
    )
    for handle in legend.legend_handles:
        handle.set_sizes([20])  # type: ignore[union-attr]
    grid.colorbar(HEAT, 0, high, 'attention received, relative to the mean')
    return grid.figure

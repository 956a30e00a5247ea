"""Sheets of panels that show one image: sizes, background and style that all figures share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from .tracer import Trace

PANEL = 2.1
"""Width of a panel in inches, if images are square."""
MOST_PIXELS = 1200
"""Longer side of the image in a panel; a larger one is shrunk, once for all panels."""
MARGIN = 0.045
"""White around an image, in its longer sides, for markers at its border."""
STYLE: Any = {
    'font.size': 7,
    'axes.titlesize': 7.5,
    'axes.titlepad': 2.5,
    'svg.fonttype': 'none',  # text stays text
    'pdf.fonttype': 42,
}


@dataclass
class Areas:
    """Areas of markers, in points^2, that stand for received attention."""

    grid: 'PanelGrid'
    columns: int

    def of(self, received: NDArray) -> NDArray:
        """Areas for attention received relative to the mean."""
        spacing = 72 * self.grid.width / self.columns
        return min(7.5, 0.25 * spacing) ** 2 * np.clip(received, 0.05, 9)


@dataclass
class PanelGrid:
    """A figure of panels that show the same image."""

    figure: Figure
    panels: NDArray
    rgb: NDArray
    size: tuple[int, int]
    seen: tuple[float, float, float, float]
    width: float

    @classmethod
    def make(
        cls,
        trace: Trace,
        rgb: NDArray,
        image: int,
        rows: int,
        columns: int,
        title: str,
        panel: float = PANEL,
    ) -> 'PanelGrid':
        size = trace.images[image].size
        if rgb.shape[:2] != size:
            shape = ' x '.join(map(str, rgb.shape[:2]))
            raise ValueError(
                f'the image is {shape} pixels, that of the trace {size[0]} x {size[1]}'
            )
        seen = trace.images[image].seen
        ratio = (seen[2] - seen[0]) / (seen[3] - seen[1])
        width = panel / min(1.3, max(0.6, ratio)) ** 0.5
        inches = columns * (width + 0.06), rows * (width * ratio + 0.2) + 0.42 + 0.2 * bool(title)
        layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
        figure = Figure(figsize=inches, dpi=200, layout=layout)
        panels = figure.subplots(rows, columns, squeeze=False)
        if title:
            figure.suptitle(title, x=0.01, ha='left', size=8.5, weight='bold')
        for axes in panels.flat:
            axes.axis('off')
            axes.set_xticks([])  # otherwise found, if not drawn
            axes.set_yticks([])
        return cls(figure, panels, _shrunk(rgb), size, seen, width)

    def panel(
        self,
        row: int,
        column: int,
        fade: float = 0.0,
        gray: bool = False,
        rgb: NDArray | None = None,
    ) -> Axes:
        """A panel with the image, mixed with white by ``fade``, perhaps without colors."""
        axes = self.panels[row, column]
        rgb = self.rgb if rgb is None else _shrunk(rgb)
        shown = np.asarray(rgb, np.float32) / 255
        if gray and shown.ndim == 3:
            shown = shown @ np.array([0.299, 0.587, 0.114], np.float32)
        shown = shown * (1 - fade) + fade
        few = max(shown.shape[:2]) < 160
        height, width = self.size
        axes.imshow(
            shown,
            cmap='gray',
            vmin=0,
            vmax=1,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation='bicubic' if few else 'antialiased',
        )
        top, left, bottom, right = self.seen
        drawn = axes.images[0]
        drawn.set_clip_path(
            Rectangle((left, top), right - left, bottom - top, transform=axes.transData)
        )
        margin = MARGIN * max(bottom - top, right - left)
        axes.set_xlim(left - margin, right + margin)
        axes.set_ylim(bottom + margin, top - margin)
        return axes

    def legend(self, handles: Sequence[Line2D]) -> None:
        self.figure.legend(
            handles=handles,
            loc='outside lower center',
            ncols=len(handles),
            frameon=False,
            fontsize=7,
            handletextpad=0.8,
            columnspacing=2.5,
        )

    def colorbar(self, cmap: str, low: float, high: float, label: str) -> None:
        shades = ScalarMappable(Normalize(low, high), cmap)
        bar = self.figure.colorbar(
            shades, ax=self.panels, location='bottom', shrink=0.5, aspect=40, pad=0.015
        )
        bar.set_label(label, size=7)
        bar.ax.tick_params(labelsize=6.5, length=2, pad=1.5)
        bar.outline.set_linewidth(0.4)


def _shrunk(rgb: NDArray) -> NDArray:
    height, width = rgb.shape[:2]
    factor = MOST_PIXELS / max(height, width)
    if factor >= 1:
        return rgb
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))

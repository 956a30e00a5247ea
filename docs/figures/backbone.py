"""Draw docs/figures/backbone.svg: the stages of DAT-T++ and its two attention operators.

    python docs/figures/backbone.py

Stages, blocks and shapes are read from the model. The sampled positions are a schematic, not the
output of a model, and are labelled so.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from dat_pp import DAT

NEIGHBORHOOD, DEFORMABLE, INK, MUTED = '#d9822b', '#1f5fbf', '#222222', '#777777'
ARCH, SIZE = 'dat-t++', 224
TIMES = '\N{MULTIPLICATION SIGN}'


def main() -> None:
    mpl.rcParams.update({'font.family': 'DejaVu Sans', 'font.size': 9, 'svg.hashsalt': ARCH})
    figure = plt.figure(figsize=(10.2, 5.3))
    draw_stages(figure.add_axes((0.01, 0.6, 0.98, 0.39)))
    draw_neighborhood(figure.add_axes((0.02, 0.01, 0.28, 0.53)))
    draw_deformable(figure.add_axes((0.36, 0.01, 0.28, 0.53)))
    draw_block(figure.add_axes((0.72, 0.01, 0.27, 0.53)))
    path = Path(__file__).with_suffix('.svg')
    figure.savefig(path, facecolor='white', metadata={'Date': None})
    print(path)


def arrow(axes: Axes, start: tuple, end: tuple, **style: object) -> None:
    style = {'color': INK, 'lw': 1.2, 'mutation_scale': 10, **style}
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle='-|>', shrinkA=0, shrinkB=0, **style))


def draw_stages(axes: Axes) -> None:
    """The image, the stem and the stages with the shapes that a forward pass gives."""
    model = DAT(ARCH).eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, SIZE, SIZE))
    axes.set(xlim=(0.05, 10.6), ylim=(0, 2.0))
    axes.axis('off')
    draw_box(axes, 0.1, 1.0, 'image', f'3 {TIMES} {SIZE} {TIMES} {SIZE}', '#eeeeee')
    draw_box(axes, 1.75, 1.0, 'stem', '2 convolutions', '#eeeeee')
    arrow(axes, (1.1, 1.35), (1.75, 1.35))
    left = 2.75
    for stage, feature in enumerate(maps):
        x = 3.35 + 1.95 * stage
        arrow(axes, (left, 1.35), (x, 1.35))
        if stage:
            axes.text((left + x) / 2, 1.45, '↓2', ha='center', color=MUTED)
        word = model.arch.mixers[stage]
        draw_box(axes, x, 1.35, f'stage {stage}', '', '#f4f6fa')
        draw_blocks(axes, x + 0.675, word)
        shape = f' {TIMES} '.join(str(n) for n in feature.shape[1:])
        arrow(axes, (x + 0.675, 0.85), (x + 0.675, 0.42))
        axes.text(x + 0.675, 0.2, f'{shape}\nstride {SIZE // feature.shape[2]}',
                  ha='center', va='center')  # fmt: skip
        left = x + 1.35


def draw_box(axes: Axes, x: float, width: float, title: str, text: str, color: str) -> None:
    axes.add_patch(
        FancyBboxPatch((x, 0.85), width, 1.0, boxstyle='round,pad=0,rounding_size=0.08',
                       facecolor=color, edgecolor=INK, lw=1)
    )  # fmt: skip
    middle = x + width / 2
    axes.text(middle, 1.62 if not text else 1.45, title, ha='center', weight='bold')
    axes.text(middle, 1.15, text, ha='center', va='center', color=MUTED, size=8)


def draw_blocks(axes: Axes, middle: float, word: str) -> None:
    """A stage's blocks as letters; what repeats is drawn once."""
    unit = next(word[:n] for n in range(1, len(word) + 1) if word[:n] * (len(word) // n) == word)
    times = len(word) // len(unit)
    x = middle - 0.2 * len(unit) - (0.15 if times > 1 else 0)
    for letter in unit:
        color = NEIGHBORHOOD if letter == 'N' else DEFORMABLE
        axes.add_patch(Rectangle((x + 0.02, 1.05), 0.36, 0.4, facecolor=color))
        axes.text(x + 0.2, 1.25, letter, ha='center', va='center', color='white', weight='bold')
        x += 0.4
    if times > 1:
        axes.text(x + 0.05, 1.25, f'{TIMES} {times}', va='center')


def draw_map(axes: Axes, title: str, color: str, side: int) -> None:
    """A feature map with an object on it."""
    axes.set(xlim=(-0.5, side - 0.5), ylim=(side + 2.0, -0.5), aspect='equal')
    axes.axis('off')
    axes.set_title(title, color=color, weight='bold', loc='left', size=10)
    axes.add_patch(
        Rectangle((-0.5, -0.5), side, side, facecolor='#fafafa', edgecolor=MUTED, lw=0.8)
    )
    for center, radius in (((9, 4.3), 2.2), ((8.4, 8.2), 2.9), ((6, 6.5), 1.3)):
        axes.add_patch(Circle(center, radius, facecolor='#cfe3cf', edgecolor='none'))


def draw_neighborhood(axes: Axes, side: int = 14, kernel: int = 7) -> None:
    draw_map(axes, 'N  neighborhood attention', NEIGHBORHOOD, side)
    query = (5, 9)  # x, y
    first = [min(max(i - kernel // 2, 0), side - kernel) for i in query]
    axes.add_patch(
        Rectangle([i - 0.5 for i in first], kernel, kernel, facecolor=NEIGHBORHOOD, alpha=0.2,
                  edgecolor='none')
    )  # fmt: skip
    xs, ys = np.meshgrid(*(np.arange(i, i + kernel) for i in first))
    axes.plot(xs.ravel(), ys.ravel(), 'o', color=NEIGHBORHOOD, ms=3)
    axes.plot(*query, '*', color=INK, ms=12)
    caption(
        axes, side, f'A query (★) attends to the {kernel} {TIMES} {kernel} positions around it.'
    )


def draw_deformable(axes: Axes, side: int = 14, points: int = 4) -> None:
    draw_map(axes, 'D  deformable attention', DEFORMABLE, side)
    query = (5, 9)
    steps = (np.arange(points) + 0.5) * side / points - 0.5
    reference = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    pull = np.array([8.4, 6.8]) - reference  # schematic offsets: towards the object
    distance = np.linalg.norm(pull, axis=1, keepdims=True)
    moved = reference + 0.75 * pull * np.clip(1 - 2 / np.maximum(distance, 2), 0, 0.55)
    for start, end in zip(reference, moved, strict=True):
        axes.plot(*start, 'o', mfc='white', mec=MUTED, ms=4)
        if np.linalg.norm(end - start) > 0.5:
            arrow(axes, tuple(start), tuple(end), color=DEFORMABLE, lw=0.7, mutation_scale=6)
        axes.plot(*zip(query, end, strict=True), color=DEFORMABLE, lw=0.4, alpha=0.35)
        axes.plot(*end, 'o', color=DEFORMABLE, ms=4.5)
    axes.plot(*query, '*', color=INK, ms=12)
    caption(axes, side, 'An offset network moves a coarse grid (○) to where the\n'
            'image asks for (●, schematic). All queries attend to these.')  # fmt: skip


def caption(axes: Axes, side: int, text: str) -> None:
    axes.text(-0.5, side, text, va='top', size=8)


def draw_block(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis('off')
    axes.set_title('A block', weight='bold', loc='left', size=10)
    lines = (
        ('x = x + LPU(x)', f'depthwise 3 {TIMES} 3 convolution'),
        ('x = x + attention(LN(x))', 'N or D, with relative position bias'),
        ('x = x + ConvFFN(LN(x))', f'with a depthwise 3 {TIMES} 3 convolution'),
    )
    for row, (code, text) in enumerate(lines):
        y = 0.86 - 0.25 * row
        axes.text(0, y, code, family='DejaVu Sans Mono', size=9)
        axes.text(0.04, y - 0.085, text, color=MUTED, size=8)


if __name__ == '__main__':
    main()

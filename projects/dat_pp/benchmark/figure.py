"""A figure of the results: time and memory against size."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .operators import MATRIX_PRODUCT
from .report import OTHERS, Rows, conditions, size_text

OUR_COLORS = ('#1f5fbf', '#0f9d7a', '#8e44ad', '#c2185b', '#7cb342', '#00838f')
OTHER_COLORS = ('#222222', '#8d8d8d')
REFERENCE_COLOR = '#e0731d'


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw models and operators, one row of panels per pass."""
    rows = [row for row in data['results'] if row['name'] != MATRIX_PRODUCT]
    names = list(dict.fromkeys(row['name'] for row in rows))
    styles = _styles(names)
    panels = list(dict.fromkeys((row['stage'] is not None, row['pass']) for row in rows))
    height = 2.5 * len(panels) + 1
    figure, grid = plt.subplots(len(panels), 2, figsize=(9, height), squeeze=False, dpi=200)
    for (staged, mode), (left, right) in zip(panels, grid):
        here = [row for row in rows if ((row['stage'] is not None), row['pass']) == (staged, mode)]
        what = 'operators, ' * staged + ('training step' if mode == 'train' else 'forward pass')
        _panel(left, here, styles, f'Time, {what}', 'time')
        _panel(right, here, styles, f'Peak memory, {what}', 'memory')
    handles = [Line2D([], [], **styles[name], label=_legend_name(name)) for name in names]
    handles.append(Line2D([], [], color='#777777', marker='_', ms=9, ls='', label='MACs alone'))
    inch = 1 / height
    title = 'single operators' if panels[0][0] else 'whole backbones'
    figure.text(
        0.02, 1 - 0.13 * inch, f'Time and memory of {title}', size=12, weight='bold', va='top'
    )
    figure.text(0.02, 1 - 0.42 * inch, conditions(data), size=8, color='#555555', va='top')
    columns = 3 if any(staged for staged, _ in panels) else 5
    figure.legend(
        handles=handles, loc='upper left', bbox_to_anchor=(0.012, 1 - 0.58 * inch), frameon=False,
        ncols=min(columns, len(handles)), fontsize=8, handlelength=2.6, columnspacing=1.6,
    )  # fmt: skip
    above = 0.65 + 0.18 * -(-len(handles) // columns)
    figure.tight_layout(rect=(0, 0, 1, 1 - above * inch), h_pad=1.2, w_pad=2)
    partial = path.with_suffix('.partial')
    figure.savefig(partial, format='png')
    plt.close(figure)
    os.replace(partial, path)


def _legend_name(name: str) -> str:
    base, _, backend = name.partition(':')
    return f'{base} ({backend})' if backend else base


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Ours in color and solid, a forced backend dashed and hollow, baselines gray."""
    ours = list(dict.fromkeys(name.partition(':')[0] for name in names if name not in OTHERS))
    others = [name for name in names if name in OTHERS]
    styles = {}
    for name in names:
        base, _, backend = name.partition(':')
        if name in others:
            color = OTHER_COLORS[others.index(name) % len(OTHER_COLORS)]
            style = dict(color=color, ls='-', marker='s' if others.index(name) else 'D', lw=1.2)
        else:
            color = OUR_COLORS[ours.index(base) % len(OUR_COLORS)]
            if backend == 'reference' and len(ours) == 1:
                color = REFERENCE_COLOR
            style = dict(color=color, ls='--' if backend else '-', marker='o', lw=2)
            style |= dict(markerfacecolor='white' if backend else color)
        styles[name] = style | dict(ms=5)
    return styles


def _panel(axes: Axes, rows: Rows, styles: dict, title: str, what: str) -> None:
    places = {place: x for x, place in enumerate(dict.fromkeys(map(_place, rows)))}
    names = list(dict.fromkeys(row['name'] for row in rows))
    _write_errors(axes, rows, places, styles)
    for i, name in enumerate(names):
        shift = 0.09 * (i - (len(names) - 1) / 2)
        mine = [row for row in rows if row['name'] == name and not row['error']]
        # Lines join sizes, or the stages at one size.
        for size in dict.fromkeys(size_text(row) if row['stage'] else None for row in mine):
            line = [row for row in mine if size in (None, size_text(row))]
            x = [places[_place(row)] + shift for row in line]
            y, spread = zip(*(_value(row, what) for row in line))
            axes.errorbar(x, y, list(zip(*spread)), **styles[name], elinewidth=1, capsize=2)
        if what == 'time' and name.partition(':')[0] not in names[:i]:
            limits = [(places[_place(row)] + shift, row['limit_s']) for row in mine]
            limits = [(x, y) for x, y in limits if y]
            color = styles[name]['color']
            axes.plot(*zip(*limits), ls='', marker='_', ms=8, mew=1.6, color=color, zorder=1)
    _axes(axes, places, title, what)


def _value(row: dict[str, Any], what: str) -> tuple[float, tuple[float, float]]:
    """The value to draw, and its error bar below and above."""
    if what == 'memory':
        return row['peak_bytes'], (0, 0)
    low, high = row['quartiles_s']
    return row['median_s'], (row['median_s'] - low, high - row['median_s'])


def _write_errors(axes: Axes, rows: Rows, places: dict[tuple, int], styles: dict) -> None:
    """Write the errors at the top of the panel, one below the other."""
    written = dict.fromkeys(places, 0)
    for row in rows:
        if row['error']:
            place = _place(row)
            axes.text(
                places[place], 0.98 - 0.08 * written[place], row['error'][:24], size=7, ha='center',
                va='top', color=styles[row['name']]['color'], transform=axes.get_xaxis_transform(),
            )  # fmt: skip
            written[place] += 1


def _place(row: dict[str, Any]) -> tuple:
    return size_text(row), row['stage'] and row['stage']['stage']


def _axes(axes: Axes, places: dict[tuple, int], title: str, what: str) -> None:
    axes.set_title(title, size=9.5, loc='left')
    axes.set_yscale('log')
    low, high = axes.get_ylim()
    low, high = (low / 3, high * 3) if high / low < 20 else (low, high)
    axes.set_ylim(low, high * 1.6)
    wide = high / low > 200
    if what == 'time':
        locator = LogLocator(subs=(1,) if wide else (1, 2, 5))
    else:
        locator = LogLocator(base=4 if wide else 2)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_seconds if what == 'time' else _bytes))
    axes.set_xticks(list(places.values()), _tick_labels(list(places)), size=8)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.tick_params(axis='y', labelsize=8)
    axes.tick_params(axis='x', length=0)
    axes.grid(axis='y', color='#dddddd', lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)


def _tick_labels(places: Sequence[tuple]) -> list[str]:
    """The size, or the stage, with the size below the first stage of each size."""
    labels, previous = [], None
    for size, stage in places:
        batch, *sides = size.split(' x ')
        text = f'{" x ".join(sides)}\nbatch {batch}'
        if stage:
            text = str(stage) if size == previous else f'stage {stage}\n{text}'
        labels.append(text)
        previous = size
    return labels


def _seconds(value: float, _: Any = None) -> str:
    return f'{value:g} s' if value >= 1 else f'{value * 1000:g} ms'


def _bytes(value: float, _: Any = None) -> str:
    for unit, name in ((2**30, 'GiB'), (2**20, 'MiB'), (2**10, 'KiB')):
        if value >= unit:
            return f'{value / unit:g} {name}'
    return f'{value:g} B'

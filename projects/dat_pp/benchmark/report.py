"""Writes what benchmark.py measured: JSON, tables and a picture."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .cases import FUSED, MATRIX_PRODUCT, OTHER_MODELS

JSON, TABLE, PICTURE = FILES = ('benchmark.json', 'benchmark.md', 'benchmark.png')
PROFILE_JSON, PROFILE_TABLE = PROFILE_FILES = ('profile.json', 'profile.md')
OTHERS = (*OTHER_MODELS, FUSED)
"""What ours is compared with."""
NOTHING = '-'
NOTE = (
    'Time: median ± half the interquartile range. Memory: peak of a pass above weights and inputs. '
    'Limit: the time that the multiply-adds of matrix products and convolutions (three times as '
    'many in training) take at the rate of the matrix product measured beside them.'
)
OUR_COLOURS = ('#1f5fbf', '#0f9d7a', '#8e44ad', '#c2185b', '#7cb342', '#00838f')
OTHER_COLOURS = ('#222222', '#8d8d8d')
REFERENCE_COLOUR = '#e0731d'
Rows = list[dict[str, Any]]


def write_json(path: Path, data: dict[str, Any]) -> None:
    """At no time is there half a file."""
    write(path, json.dumps(data, indent=1) + '\n')


def write(path: Path, text: str) -> None:
    partial = path.with_suffix('.partial')
    partial.write_text(text)
    os.replace(partial, path)


def finish(folder: Path, data: dict[str, Any]) -> None:
    """Write everything and print the tables."""
    text = tables(data)
    print(text)
    write_json(folder / JSON, data)
    write(folder / TABLE, text + '\n')
    picture(data, folder / PICTURE)
    print('\n'.join(['', *(f'written: {folder / name}' for name in FILES)]))


def finish_profile(folder: Path, data: dict[str, Any]) -> None:
    """Write everything and print the tables."""
    text = profile_tables(data)
    print(text)
    write_json(folder / PROFILE_JSON, data)
    write(folder / PROFILE_TABLE, text + '\n')
    print('\n'.join(['', *(f'written: {folder / name}' for name in PROFILE_FILES)]))


def conditions(data: dict[str, Any]) -> str:
    """Machine, threads, precision, version and date in one line."""
    machine = data['machine']
    threads = machine['threads']
    place = [machine['gpu']] if 'gpu' in machine else [machine['cpu'], _plural(threads, 'thread')]
    parts = [*place, data['dtype'], f'PyTorch {data["versions"]["torch"]}', data['date'][:10]]
    return ', '.join(parts if data['complete'] else [*parts, 'interrupted'])


def _plural(number: int, noun: str) -> str:
    return f'{number} {noun}' + 's' * (number != 1)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table, its first columns' widths filled up so that it can be read as text too."""
    rows = [list(head), *map(list, lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    texts = [
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |'
        for row in rows
    ]
    texts.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    return '\n'.join(texts)


def _size(row: dict[str, Any]) -> str:
    return ' x '.join(str(row['size'][key]) for key in ('batch', 'height', 'width'))


def _stage(row: dict[str, Any]) -> str:
    stage = row['stage']
    return f'{stage["stage"]}: {stage["map"][0]} x {stage["map"][1]}, {stage["heads"]} heads'


def _group(row: dict[str, Any]) -> tuple:
    return _size(row), row['pass'], row['stage'] and row['stage']['stage']


def _number(value: float | None, digits: int = 3) -> str:
    """With that many digits that tell something."""
    if value is None:
        return NOTHING
    if value == 0:
        return '0'
    return f'{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}'


def tables(data: dict[str, Any]) -> str:
    """The tables of models and of operators."""
    results = data['results']
    models = [row for row in results if row['stage'] is None]
    operators = [row for row in results if row['stage'] is not None]
    parts = [conditions(data), *(table(rows) for rows in (models, operators) if rows), NOTE]
    if data['machine'].get('tf32_convolutions') and data['dtype'] == 'float32':
        parts.append('Convolutions may use TF32, which the matrix product does not.')
    return '\n\n'.join(parts)


def table(rows: Rows) -> str:
    """One line for each contestant in each group, in the order measured."""
    baselines = [name for name in OTHERS if any(row['name'] == name for row in rows)]
    medians = {(_group(row), row['name']): row['median_s'] for row in rows}
    staged = rows[0]['stage'] is not None
    head = ['size', *['stage'] * staged, 'pass', 'contestant', 'time (ms)']
    head += [f'x {name}' for name in baselines]
    head += ['images/s', 'memory (MiB)', 'limit (ms)', 'time / limit']
    lines = []
    for row in rows:
        cells = [_size(row), *([_stage(row)] if staged else ())]
        cells += [row['pass'], row['name'], _time(row)]
        for name in baselines:
            base, own = medians.get((_group(row), name)), row['median_s']
            comparable = base and own and row['name'] != MATRIX_PRODUCT
            cells.append(_number(own / base if comparable else None))
        peak = None if row['error'] or row['peak_bytes'] is None else row['peak_bytes'] / 2**20
        if row['name'] == MATRIX_PRODUCT:
            rate = row['multiply_adds_per_s']
            speed = f'{rate / 1e9:.1f} G multiply-adds/s' if rate else NOTHING
            cells += [NOTHING, NOTHING, speed, NOTHING]
        else:
            limit = None if row['limit_s'] is None else row['limit_s'] * 1000
            cells += [_number(row['images_per_s']), _number(peak), _number(limit)]
            cells.append(_number(row['time_over_limit']))
        lines.append(cells)
    return markdown(head, lines)


def _time(row: dict[str, Any]) -> str:
    if row['error'] or row['median_s'] is None:
        return row['error'] or NOTHING
    low, high = row['quartiles_s']
    return f'{_number(row["median_s"] * 1000)} ± {_number((high - low) * 500, 2)}'


def profile_tables(data: dict[str, Any]) -> str:
    """A table for each size and pass: classes of operators by models."""
    parts = [conditions(data)]
    for group in dict.fromkeys((_size(row), row['pass']) for row in data['results']):
        rows = [row for row in data['results'] if (_size(row), row['pass']) == group]
        classes = dict.fromkeys(name for row in rows for name in row.get('classes_s', ()))
        lines = [[name, *(_share(row, name) for row in rows)] for name in classes]
        totals = [row['error'] or f'{_number(row["total_s"] * 1000)} ms' for row in rows]
        head = [f'{group[0]}, {group[1]}', *(row['name'] for row in rows)]
        parts.append(markdown(head, [*lines, ['all', *totals]]))
    return '\n\n'.join(parts)


def _share(row: dict[str, Any], name: str) -> str:
    if row['error'] or name not in row['classes_s']:
        return NOTHING
    own = row['classes_s'][name]
    return f'{_number(own * 1000)} ms, {own / row["total_s"]:.1%}'


def picture(data: dict[str, Any], path: Path) -> None:
    """Time and memory against size: models and operators, one row of panels for each pass."""
    rows = [row for row in data['results'] if row['name'] != MATRIX_PRODUCT]
    names = list(dict.fromkeys(row['name'] for row in rows))
    styles = _styles(names)
    panels = list(dict.fromkeys((row['stage'] is not None, row['pass']) for row in rows))
    height = 2.5 * len(panels) + 1
    figure, grid = plt.subplots(len(panels), 2, figsize=(9, height), squeeze=False, dpi=200)
    for (staged, kind), (left, right) in zip(panels, grid):
        here = [row for row in rows if ((row['stage'] is not None), row['pass']) == (staged, kind)]
        what = 'operators, ' * staged + ('training step' if kind == 'train' else 'forward pass')
        _panel(left, here, styles, f'Time, {what}', 'time')
        _panel(right, here, styles, f'Peak memory, {what}', 'memory')
    handles = [Line2D([], [], **styles[name], label=_legend_name(name)) for name in names]
    handles.append(
        Line2D([], [], color='#777777', marker='_', ms=9, ls='', label='multiply-adds alone')
    )
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
    """Ours in colour and solid, a forced backend dashed and hollow, the others grey."""
    ours = list(dict.fromkeys(name.partition(':')[0] for name in names if name not in OTHERS))
    others = [name for name in names if name in OTHERS]
    styles = {}
    for name in names:
        base, _, backend = name.partition(':')
        if name in others:
            colour = OTHER_COLOURS[others.index(name) % len(OTHER_COLOURS)]
            style = dict(color=colour, ls='-', marker='s' if others.index(name) else 'D', lw=1.2)
        else:
            colour = OUR_COLOURS[ours.index(base) % len(OUR_COLOURS)]
            if backend == 'reference' and len(ours) == 1:
                colour = REFERENCE_COLOUR
            style = dict(color=colour, ls='--' if backend else '-', marker='o', lw=2)
            style |= dict(markerfacecolor='white' if backend else colour)
        styles[name] = style | dict(ms=5)
    return styles


def _panel(axes: Axes, rows: Rows, styles: dict, title: str, what: str) -> None:
    places = {place: x for x, place in enumerate(dict.fromkeys(map(_place, rows)))}
    names = list(dict.fromkeys(row['name'] for row in rows))
    _say_errors(axes, rows, places, styles)
    for i, name in enumerate(names):
        shift = 0.09 * (i - (len(names) - 1) / 2)
        mine = [row for row in rows if row['name'] == name and not row['error']]
        # Lines join sizes, or the stages at one size.
        for size in dict.fromkeys(_size(row) if row['stage'] else None for row in mine):
            line = [row for row in mine if size in (None, _size(row))]
            x = [places[_place(row)] + shift for row in line]
            y, spread = zip(*(_value(row, what) for row in line))
            axes.errorbar(x, y, list(zip(*spread)), **styles[name], elinewidth=1, capsize=2)
        if what == 'time' and name.partition(':')[0] not in names[:i]:
            limits = [(places[_place(row)] + shift, row['limit_s']) for row in mine]
            limits = [(x, y) for x, y in limits if y]
            colour = styles[name]['color']
            axes.plot(*zip(*limits), ls='', marker='_', ms=8, mew=1.6, color=colour, zorder=1)
    _axes(axes, places, title, what)


def _value(row: dict[str, Any], what: str) -> tuple[float, tuple[float, float]]:
    """What is drawn, and how far it spreads to both sides."""
    if what == 'memory':
        return row['peak_bytes'], (0, 0)
    low, high = row['quartiles_s']
    return row['median_s'], (row['median_s'] - low, high - row['median_s'])


def _say_errors(axes: Axes, rows: Rows, places: dict[tuple, int], styles: dict) -> None:
    """At the top of the panel, one below the other."""
    said = dict.fromkeys(places, 0)
    for row in rows:
        if row['error']:
            place = _place(row)
            axes.text(
                places[place], 0.98 - 0.08 * said[place], row['error'][:24], size=7, ha='center',
                va='top', color=styles[row['name']]['color'], transform=axes.get_xaxis_transform(),
            )  # fmt: skip
            said[place] += 1


def _place(row: dict[str, Any]) -> tuple:
    return _size(row), row['stage'] and row['stage']['stage']


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
    """The size, or the stage with the size below the first of its stages."""
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

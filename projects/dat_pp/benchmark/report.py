"""Results as JSON and as tables in Markdown."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .cases import BASELINES, SDPA
from .operators import MATRIX_PRODUCT

JSON, TABLE, FIGURE = FILES = ('benchmark.json', 'benchmark.md', 'benchmark.png')
PROFILE_JSON, PROFILE_TABLE = PROFILE_FILES = ('profile.json', 'profile.md')
OTHERS = (*BASELINES, SDPA)
"""Baselines: what ours is compared with."""
NOTHING = '-'
NOTE = (
    'Time: median ± half the interquartile range. Memory: peak of a pass above weights and inputs. '
    'Limit: the time that the MACs of matrix products and convolutions alone (three times as many '
    'in training) take at the rate of the matrix product measured beside them.'
)
Rows = list[dict[str, Any]]


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file at once, so that there is never half of one."""
    write(path, json.dumps(data, indent=1) + '\n')


def write(path: Path, text: str) -> None:
    """Write a text file at once."""
    partial = path.with_suffix('.partial')
    partial.write_text(text, encoding='utf-8')
    os.replace(partial, path)


def conditions(data: dict[str, Any]) -> str:
    """Machine, threads, precision, version and date on one line."""
    machine = data['machine']
    threads = machine['threads']
    place = [machine['gpu']] if 'gpu' in machine else [machine['cpu'], _plural(threads, 'thread')]
    parts = [*place, data['dtype'], f'PyTorch {data["versions"]["torch"]}', data['date'][:10]]
    return ', '.join(parts if data['complete'] else [*parts, 'interrupted'])


def _plural(number: int, noun: str) -> str:
    return f'{number} {noun}' + 's' * (number != 1)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, padded so that it can be read as text, too."""
    rows = [list(head), *map(list, lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    texts = [
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |'
        for row in rows
    ]
    texts.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    return '\n'.join(texts)


def size_text(row: dict[str, Any]) -> str:
    return ' x '.join(str(row['size'][key]) for key in ('batch', 'height', 'width'))


def stage_text(row: dict[str, Any]) -> str:
    stage = row['stage']
    return f'{stage["stage"]}: {stage["map"][0]} x {stage["map"][1]}, {stage["heads"]} heads'


def _group(row: dict[str, Any]) -> tuple:
    return size_text(row), row['pass'], row['stage'] and row['stage']['stage']


def number(value: float | None, digits: int = 3) -> str:
    """A number with that many significant digits."""
    if value is None:
        return NOTHING
    if value == 0:
        return '0'
    return f'{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}'


def tables(data: dict[str, Any]) -> str:
    """The tables of models and of operators, with conditions and notes."""
    results = data['results']
    models = [row for row in results if row['stage'] is None]
    operators = [row for row in results if row['stage'] is not None]
    parts = [conditions(data), *(table(rows) for rows in (models, operators) if rows), NOTE]
    if data['machine'].get('tf32_convolutions') and data['dtype'] == 'float32':
        parts.append('Convolutions may use TF32, which the matrix product does not.')
    return '\n\n'.join(parts)


def table(rows: Rows) -> str:
    """One line per case and group, in the order measured."""
    baselines = [name for name in OTHERS if any(row['name'] == name for row in rows)]
    medians = {(_group(row), row['name']): row['median_s'] for row in rows}
    staged = rows[0]['stage'] is not None
    head = ['size', *['stage'] * staged, 'pass', 'case', 'time (ms)']
    head += [f'x {name}' for name in baselines]
    head += ['images/s', 'memory (MiB)', 'limit (ms)', 'time / limit']
    lines = []
    for row in rows:
        cells = [size_text(row), *([stage_text(row)] if staged else ())]
        cells += [row['pass'], row['name'], _time(row)]
        for name in baselines:
            base, own = medians.get((_group(row), name)), row['median_s']
            comparable = base and own and row['name'] != MATRIX_PRODUCT
            cells.append(number(own / base if comparable else None))
        peak = None if row['error'] or row['peak_bytes'] is None else row['peak_bytes'] / 2**20
        if row['name'] == MATRIX_PRODUCT:
            rate = row['macs_per_s']
            speed = f'{rate / 1e9:.1f} GMACs/s' if rate else NOTHING
            cells += [NOTHING, NOTHING, speed, NOTHING]
        else:
            limit = None if row['limit_s'] is None else row['limit_s'] * 1000
            cells += [number(row['images_per_s']), number(peak), number(limit)]
            cells.append(number(row['time_over_limit']))
        lines.append(cells)
    return markdown(head, lines)


def _time(row: dict[str, Any]) -> str:
    if row['error'] or row['median_s'] is None:
        return row['error'] or NOTHING
    low, high = row['quartiles_s']
    return f'{number(row["median_s"] * 1000)} ± {number((high - low) * 500, 2)}'


def profile_tables(data: dict[str, Any]) -> str:
    """A table per size and pass: classes of operators by models."""
    parts = [conditions(data)]
    for group in dict.fromkeys((size_text(row), row['pass']) for row in data['results']):
        rows = [row for row in data['results'] if (size_text(row), row['pass']) == group]
        classes = dict.fromkeys(name for row in rows for name in row.get('classes_s', ()))
        lines = [[name, *(_share(row, name) for row in rows)] for name in classes]
        totals = [row['error'] or f'{number(row["total_s"] * 1000)} ms' for row in rows]
        head = [f'{group[0]}, {group[1]}', *(row['name'] for row in rows)]
        parts.append(markdown(head, [*lines, ['all', *totals]]))
    return '\n\n'.join(parts)


def _share(row: dict[str, Any], name: str) -> str:
    if row['error'] or name not in row['classes_s']:
        return NOTHING
    own = row['classes_s'][name]
    return f'{number(own * 1000)} ms, {own / row["total_s"]:.1%}'

"""Time and memory of models and operators, measured in turn in one process.

    python tools/analysis_tools/benchmark.py [--models NAME ...] [--operators [NAME ...]]
        [--sizes [BATCHx]HxW ...] [--passes forward train] [--device cpu|cuda] [--amp]
        [--threads N] [--repeat N] [--out-dir DIR] [--profile]

Every round runs each case once, so that slow changes of the machine affect all cases alike; the
median and the quartiles of the rounds are kept. A square matrix product takes part: from its rate
follows the time that the MACs of a case alone would take. Memory is the peak of a pass above the
weights; a case that runs out of memory is reported as that and not run again. Writes
benchmark.json, .md and .png; the JSON after every size and pass, so Ctrl-C loses nothing. With
--profile, the time of one pass by class of operator instead: profile.json and profile.md.

NAME: an arch (dat-t++), an arch with one of our backends (dat-t++:reference), or a baseline of
mmpretrain: swin-t, convnext-t. Operators: deformable_attention and neighborhood_attention, with a
backend or without, and PyTorch's scaled_dot_product_attention without a position bias; their
shapes are those of the four stages of DAT-T++.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..engine.errors import message_of, user_errors
from . import figure, report
from .cases import Models
from .measure import (
    OUT_OF_MEMORY,
    Case,
    is_out_of_memory,
    limited_memory,
    measure_interleaved,
)
from .operators import matrix_product, operator_cases
from .plan import Group, Plan, check, groups, parse_args
from .profile import profile_pass
from .results import header, rows

INTERRUPTED = 130
"""Exit code of shells for Ctrl-C."""


def cases_of(group: Group, models: Models) -> list[Case]:
    """Make the cases of a group."""
    if group.shapes is None:
        return models.cases(group.names, group.size, group.mode)
    return operator_cases(group.names, group.size, group.shapes, group.mode, models.setting)


def measure(plan: Plan, data: dict[str, Any], announce: Callable[[str], None]) -> None:
    """Measure everything into ``data['results']``; write it after every group."""
    models, product = Models(plan.setting), matrix_product(plan.setting)
    for group in groups(plan):
        announce_run = lambda text, group=group: announce(f'{group}: {text}')  # noqa: E731
        cases = [*cases_of(group, models), product]
        found = measure_interleaved(cases, plan.repeat, plan.setting.device, announce_run)
        data['results'] += rows(group, cases, found)
        report.write_json(plan.out_dir / report.JSON, data)


def profile(plan: Plan, data: dict[str, Any], announce: Callable[[str], None]) -> None:
    """Profile everything into ``data['results']``; write it after every group."""
    device, models = plan.setting.device, Models(plan.setting)
    for group in groups(plan):
        for case in cases_of(group, models):
            result = dict(
                name=case.name, size=asdict(group.size), **{'pass': group.mode}, error=None
            )
            with limited_memory(device):
                try:
                    announce(f'{group}: {case.name}, warm-up')
                    case.run()
                    case.clear()
                    announce(f'{group}: {case.name}, profile')
                    result |= profile_pass(case.run, device)
                except Exception as error:
                    out = is_out_of_memory(error)
                    result['error'] = OUT_OF_MEMORY if out else message_of(error)
                finally:
                    case.clear()
            data['results'].append(result)
        report.write_json(plan.out_dir / report.PROFILE_JSON, data)


@contextmanager
def progress_bar(plan: Plan) -> Iterator[Callable[[str], None]]:
    """Show a progress bar; yield a function to be called with a text before each run."""
    if plan.profile:
        total = sum(2 * len(group.names) for group in groups(plan))
    else:
        total = sum((plan.repeat + 1) * (len(group.names) + 1) for group in groups(plan))
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn()
    # A copy of stderr, which is silenced while the profiler runs. The bar is drawn between runs
    # only: a thread of its own would disturb what is measured.
    with os.fdopen(os.dup(2), 'w') as stderr:
        bar = Progress(
            *columns, TimeElapsedColumn(), console=Console(file=stderr), auto_refresh=False
        )
        task, before = bar.add_task('', total=total), itertools.count()

        def announce(text: str) -> None:
            bar.update(task, completed=next(before), description=text, refresh=True)

        with bar:
            yield announce
            bar.update(task, completed=total, description='done', refresh=True)


def finish(folder: Path, data: dict[str, Any]) -> None:
    """Print the tables and write everything."""
    text = report.tables(data)
    print(text)
    report.write_json(folder / report.JSON, data)
    report.write(folder / report.TABLE, text + '\n')
    figure.draw(data, folder / report.FIGURE)
    print('\n'.join(['', *(f'written: {folder / name}' for name in report.FILES)]))


def finish_profile(folder: Path, data: dict[str, Any]) -> None:
    """Print the tables and write everything."""
    text = report.profile_tables(data)
    print(text)
    report.write_json(folder / report.PROFILE_JSON, data)
    report.write(folder / report.PROFILE_TABLE, text + '\n')
    print('\n'.join(['', *(f'written: {folder / name}' for name in report.PROFILE_FILES)]))


def main(argv: Sequence[str] | None = None) -> int | None:
    args = parse_args(__doc__, argv)
    plan = check(args)
    with user_errors(f'--out-dir {plan.out_dir}'):
        plan.out_dir.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads or threads)
    data = header(args, plan)
    work, report_all = (profile, finish_profile) if plan.profile else (measure, finish)
    try:
        with progress_bar(plan) as announce:
            work(plan, data, announce)
        data['complete'] = True
    except KeyboardInterrupt:
        kept = 'what was measured is kept' if data['results'] else 'nothing was measured yet'
        print(f'interrupted: {kept}', file=sys.stderr)
    finally:
        torch.set_num_threads(threads)
    if data['results']:
        report_all(plan.out_dir, data)
    if not data['complete']:
        return INTERRUPTED
    # Running out of memory is a result; any other error is a failure.
    return int(any(result['error'] not in (None, OUT_OF_MEMORY) for result in data['results']))

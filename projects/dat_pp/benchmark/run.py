"""Time and memory of models and operators, measured in turn in one process.

    python tools/analysis_tools/benchmark.py [--models NAME ...] [--operators [NAME ...]]
        [--sizes [BATCHx]HxW ...] [--passes forward train] [--device cpu|cuda] [--amp]
        [--threads N] [--repeat N] [--out-dir DIR] [--profile]

Every round runs each contestant once, so that changes of the machine meet all of them; the median
and the quartiles of the rounds are kept. A square matrix product takes part: its rate gives the
time that the multiply-adds of a contestant alone would take. Memory is the peak of a pass above
the weights; a contestant that runs out of memory says so and leaves the rounds. Writes
benchmark.json, .md and .png, after every size and pass what there is; Ctrl-C ends it early.
With --profile the time of one pass by class of operator instead: profile.json and profile.md.

NAME: an arch (dat-t++), an arch with one of our backends (dat-t++:reference), swin-t or convnext-t
(mmpretrain's). Operators: deformable_attention, neighborhood_attention, with a backend or not, and
PyTorch's scaled_dot_product_attention without bias, on what the stages of DAT-T++ see.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..engine.errors import UserError, message_of, user_errors
from . import report
from .cases import (
    MATRIX_PRODUCT,
    MATRIX_SIZE,
    OPERATORS,
    OUR_OPERATORS,
    PASSES,
    Models,
    Setting,
    Shapes,
    Size,
    check_model,
    check_operator,
    matrix_product,
    operator_contestants,
    operators_in,
    stage_shapes,
)
from .measure import (
    OUT_OF_MEMORY,
    Contestant,
    Measurement,
    compete,
    is_out_of_memory,
    limited_memory,
)
from .profile import profile_pass

DEFAULT_MODELS = ('dat-t++', 'dat-t++:reference', 'swin-t', 'convnext-t')
DEFAULT_OPERATORS = (*OPERATORS, *(f'{name}:reference' for name in OUR_OPERATORS))
DEFAULT_SIZES = {
    'cpu': ('8x224x224', '4x384x384', '1x512x2048', '1x800x1344'),
    'cuda': ('128x224x224', '64x384x384', '4x512x2048', '2x800x1344'),
}
INTERRUPTED = 130
"""Exit code of shells for Ctrl-C."""


@dataclass(frozen=True)
class Plan:
    """What to measure, checked."""

    setting: Setting
    models: list[str]
    operators: list[str]
    sizes: list[Size]
    passes: list[str]
    repeat: int
    out_dir: Path
    profile: bool


@dataclass(frozen=True)
class Group:
    """Contestants that are compared with each other."""

    size: Size
    kind: str
    shapes: Shapes | None
    names: list[str]

    def __str__(self) -> str:
        stage = f', stage {self.shapes.stage}' if self.shapes else ''
        return f'{self.size}{stage}, {self.kind}'


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--models', nargs='+', metavar='NAME', help=' '.join(DEFAULT_MODELS))
    parser.add_argument(
        '--operators', nargs='*', metavar='NAME', help='instead of models; without names all'
    )
    parser.add_argument(
        '--sizes', nargs='+', metavar='SIZE', help='H (square), HxW or BATCHxHxW: 8x224x224'
    )
    parser.add_argument('--passes', nargs='+', choices=PASSES, default=list(PASSES))
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--amp', action='store_true', help='autocast: bfloat16 (CPU) or float16')
    parser.add_argument('--threads', type=int, help='of a CPU; default: as PyTorch chooses')
    parser.add_argument('--repeat', type=int, default=7, help='rounds (7)')
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/benchmark'))
    parser.add_argument('--profile', action='store_true', help='time by class of operator')
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> Plan:
    """What the arguments ask for.

    Raises:
        UserError: One of them cannot be used.
    """
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: no CUDA device is available')
    for name in ('repeat', 'threads'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f'--{name} must be at least 1, got {value}')
    if args.profile and args.operators is not None:
        raise UserError('--profile is for models; leave --operators out')
    setting = Setting(torch.device(args.device), args.amp)
    operators = unique(args.operators or DEFAULT_OPERATORS) if args.operators is not None else []
    models = unique(args.models or (() if operators else DEFAULT_MODELS))
    for name in models:
        check_model(name, setting)
    for name in operators:
        check_operator(name, setting)
    sizes = unique(parse_size(text) for text in args.sizes or DEFAULT_SIZES[args.device])
    passes = unique(args.passes)
    check_out_dir(args.out_dir, report.PROFILE_FILES if args.profile else report.FILES)
    return Plan(setting, models, operators, sizes, passes, args.repeat, args.out_dir, args.profile)


def unique(items: Sequence[Any]) -> list[Any]:
    """In order, without repetitions."""
    return list(dict.fromkeys(items))


def parse_size(text: str) -> Size:
    """``H``, ``HxW`` or ``BATCHxHxW``."""
    parts = text.split('x')
    if not all(part.isascii() and part.isdigit() for part in parts) or len(parts) > 3:
        raise UserError(f'--sizes: {text!r} is not H, HxW or BATCHxHxW, like 8x224x224')
    numbers = [int(part) for part in parts]
    if min(numbers) < 1:
        raise UserError(f'--sizes: batch and sides must be at least 1, got {text!r}')
    return Size(*{1: (1, *numbers * 2), 2: (1, *numbers), 3: numbers}[len(numbers)])


def check_out_dir(path: Path, files: Sequence[str]) -> None:
    """Raise a UserError if results cannot be written, or are there already."""
    folder = next(folder for folder in (path, *path.parents) if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f'--out-dir: {folder} is not a folder that can be written to')
    for name in files:
        if (path / name).exists():
            raise UserError(f'--out-dir: {path / name} exists; nothing is overwritten')


def groups(plan: Plan) -> Iterator[Group]:
    """Everything to measure, in order."""
    for size in plan.sizes:
        for kind in plan.passes:
            if plan.models:
                yield Group(size, kind, None, plan.models)
            for shapes in stage_shapes(size) if plan.operators else ():
                names = operators_in(plan.operators, shapes)
                if names:
                    yield Group(size, kind, shapes, names)


def contestants_of(group: Group, models: Models) -> list[Contestant]:
    if group.shapes is None:
        return models.contestants(group.names, group.size, group.kind)
    return operator_contestants(group.names, group.size, group.shapes, group.kind, models.setting)


def measure(plan: Plan, data: dict[str, Any], announce: Callable[[str], None]) -> None:
    """Fill ``data['results']``; rewritten on disk after every group."""
    models, product = Models(plan.setting), matrix_product(plan.setting)
    for group in groups(plan):
        announce_run = lambda text, group=group: announce(f'{group}: {text}')  # noqa: E731
        contestants = [*contestants_of(group, models), product]
        found = compete(contestants, plan.repeat, plan.setting.device, announce_run)
        data['results'] += rows(group, contestants, found)
        report.write_json(plan.out_dir / report.JSON, data)


def rows(
    group: Group, contestants: Sequence[Contestant], found: dict[str, Measurement]
) -> list[dict[str, Any]]:
    """What is kept of each contestant."""
    product = next(item for item in contestants if item.name == MATRIX_PRODUCT)
    times = found[MATRIX_PRODUCT].times
    rate = product.products / statistics.median(times) if times else None
    return [row(group, item, found[item.name], rate) for item in contestants]


def row(
    group: Group, contestant: Contestant, found: Measurement, rate: float | None
) -> dict[str, Any]:
    """One contestant: what was found, and the time that its multiply-adds take at ``rate``."""
    median = quartiles = None
    if found.times and not found.error:
        median = statistics.median(found.times)
        # Of one number there are no quartiles.
        cuts = statistics.quantiles(found.times * 2 if len(found.times) == 1 else found.times,
                                    n=4, method='inclusive')  # fmt: skip
        quartiles = [cuts[0], cuts[2]]
    limit = contestant.products / rate if contestant.products and rate else None
    of_models = contestant.name == MATRIX_PRODUCT
    return dict(
        name=contestant.name,
        size=asdict(group.size),
        **{'pass': group.kind},
        stage=asdict(group.shapes) if group.shapes else None,
        times_s=found.times,
        median_s=median,
        quartiles_s=quartiles,
        images_per_s=group.size.batch / median if median and not of_models else None,
        peak_bytes=found.peak,
        multiply_adds=contestant.products,
        multiply_adds_per_s=rate,
        limit_s=limit,
        time_over_limit=median / limit if median and limit else None,
        error=found.error,
    )


def profile(plan: Plan, data: dict[str, Any], announce: Callable[[str], None]) -> None:
    """Fill ``data['results']`` with profiles; rewritten on disk after every group."""
    device, models = plan.setting.device, Models(plan.setting)
    for group in groups(plan):
        for contestant in contestants_of(group, models):
            result = dict(
                name=contestant.name, size=asdict(group.size), **{'pass': group.kind}, error=None
            )
            with limited_memory(device):
                try:
                    announce(f'{group}: {contestant.name}, warm-up')
                    contestant.run()
                    contestant.clear()
                    announce(f'{group}: {contestant.name}, profile')
                    result |= profile_pass(contestant.run, device)
                except Exception as error:
                    out = is_out_of_memory(error)
                    result['error'] = OUT_OF_MEMORY if out else message_of(error)
                finally:
                    contestant.clear()
            data['results'].append(result)
        report.write_json(plan.out_dir / report.PROFILE_JSON, data)


@contextmanager
def progress_bar(plan: Plan) -> Iterator[Callable[[str], None]]:
    """Yields what is to be called with a text before each run."""
    if plan.profile:
        total = sum(2 * len(group.names) for group in groups(plan))
    else:
        total = sum((plan.repeat + 1) * (len(group.names) + 1) for group in groups(plan))
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn()
    # A copy of stderr: the profiler's lines are kept from the other one. It is drawn between runs
    # only: a thread of its own would take part in what is measured.
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


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    name, memory = platform.processor() or platform.machine(), None
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if 'model name' in line]
        name = models[0].partition(':')[2].strip() if models else name
    if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
        memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    found = dict(cpu=name, memory_bytes=memory, threads=torch.get_num_threads())
    if device.type == 'cuda':
        found['gpu'] = torch.cuda.get_device_name(device)
        found['gpu_memory_bytes'] = torch.cuda.get_device_properties(device).total_memory
        found['tf32_convolutions'] = torch.backends.cudnn.allow_tf32
        found['tf32_matrix_products'] = torch.backends.cuda.matmul.allow_tf32
    return found


def versions() -> dict[str, str]:
    found = dict(python=platform.python_version(), torch=torch.__version__)
    for name in ('dat_pp', 'mmpretrain', 'onedl-mmpretrain', 'triton'):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def header(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """What the JSON begins with."""
    arguments = {name: value for name, value in vars(args).items() if name != 'out_dir'}
    return dict(
        date=datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        machine=machine(plan.setting.device),
        versions=versions(),
        dtype=str(plan.setting.dtype).replace('torch.', ''),
        matrix_size=MATRIX_SIZE[plan.setting.device.type],
        arguments=arguments,
        complete=False,
        results=[],
    )


def main(argv: Sequence[str] | None = None) -> int | None:
    args = parse_args(argv)
    plan = check(args)
    with user_errors(f'--out-dir {plan.out_dir}'):
        plan.out_dir.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads or threads)
    data = header(args, plan)
    work, finish = (profile, report.finish_profile) if plan.profile else (measure, report.finish)
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
        finish(plan.out_dir, data)
    if not data['complete']:
        return INTERRUPTED
    # Out of memory is a result; another error is one of ours.
    return int(any(result['error'] not in (None, OUT_OF_MEMORY) for result in data['results']))

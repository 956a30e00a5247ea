"""Command line arguments of the benchmark, and the plan they give."""

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..engine.errors import UserError
from . import report
from .cases import OPERATORS, OUR_OPERATORS, PASSES, Setting, Size, check_model, check_operator
from .operators import Shapes, operators_in, stage_shapes

DEFAULT_MODELS = ('dat-t++', 'dat-t++:reference', 'swin-t', 'convnext-t')
DEFAULT_OPERATORS = (*OPERATORS, *(f'{name}:reference' for name in OUR_OPERATORS))
DEFAULT_SIZES = {
    'cpu': ('8x224x224', '4x384x384', '1x512x2048', '1x800x1344'),
    'cuda': ('128x224x224', '64x384x384', '4x512x2048', '2x800x1344'),
}


@dataclass(frozen=True)
class Plan:
    """What to measure: arguments that have been checked."""

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
    """Cases that are compared with each other."""

    size: Size
    mode: str
    shapes: Shapes | None
    names: list[str]

    def __str__(self) -> str:
        stage = f', stage {self.shapes.stage}' if self.shapes else ''
        return f'{self.size}{stage}, {self.mode}'


def parse_args(description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
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
    """Check the arguments and make the plan.

    Raises:
        UserError: An argument cannot be used.
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


def unique(items: Iterable[Any]) -> list[Any]:
    """Drop repetitions and keep the order."""
    return list(dict.fromkeys(items))


def parse_size(text: str) -> Size:
    """Parse ``H``, ``HxW`` or ``BATCHxHxW``."""
    parts = text.split('x')
    if not all(part.isascii() and part.isdigit() for part in parts) or len(parts) > 3:
        raise UserError(f'--sizes: {text!r} is not H, HxW or BATCHxHxW, like 8x224x224')
    numbers = [int(part) for part in parts]
    if min(numbers) < 1:
        raise UserError(f'--sizes: batch and sides must be at least 1, got {text!r}')
    return Size(*{1: (1, *numbers * 2), 2: (1, *numbers), 3: numbers}[len(numbers)])


def check_out_dir(path: Path, files: Sequence[str]) -> None:
    """Raise a UserError if results cannot be written there, or exist already."""
    folder = next(folder for folder in (path, *path.parents) if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f'--out-dir: {folder} is not a folder that can be written to')
    for name in files:
        if (path / name).exists():
            raise UserError(f'--out-dir: {path / name} exists; nothing is overwritten')


def groups(plan: Plan) -> Iterator[Group]:
    """Yield everything to measure, in order."""
    for size in plan.sizes:
        for mode in plan.passes:
            if plan.models:
                yield Group(size, mode, None, plan.models)
            for shapes in stage_shapes(size) if plan.operators else ():
                names = operators_in(plan.operators, shapes)
                if names:
                    yield Group(size, mode, shapes, names)

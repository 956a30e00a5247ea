"""Fine-tune a model on a dataset of one's own.

    python tools/fine_tune.py TASK DATA... --weights FILE --out PROJECT [--run]

DATA, by TASK:

    classification         a folder of class folders, or one with train/ and val/ of them, or two
    detection              COCO annotations and images: a folder that holds both, or
    instance-segmentation  TRAIN.json [VAL.json] [FOLDER of images ...]
    segmentation           a folder with images/ and annotations/ (or labels/, masks/), or these
                           two, both with train/ and val/ or not; classes.txt or --classes names
                           the values

Without validation images, a fifth is set aside. The data is checked, and PROJECT gets a config that
inherits one of this package, a README of the commands to train, test and predict, and the weights
to start from. --run trains, tests and draws the predictions.
"""

import argparse
import contextlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from .. import check_dataset
from ..config import LIBRARIES, read_config
from ..errors import UserError, user_errors
from ..preflight import check_file, check_model, check_writable
from .data import Data
from .project import ARCHS, TASKS, base_config, commands, config_text, plan, readme_text
from .start import starting_weights

SERIAL = 200  # images up to which checking in several processes is not worth their start


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('task', metavar='TASK', choices=TASKS, help=', '.join(TASKS))
    parser.add_argument('data', nargs='+', metavar='DATA', help='folders and files, see above')
    parser.add_argument(
        '--weights', required=True, metavar='FILE', help='checkpoint of any task, or published file'
    )
    parser.add_argument('--out', required=True, metavar='PROJECT', help='new folder')
    parser.add_argument('--arch', choices=ARCHS, default='dat-t++', help='default: %(default)s')
    parser.add_argument('--epochs', type=int, help='default: fitted to the number of images')
    parser.add_argument('--batch-size', type=int, help='images per batch; default: by task')
    parser.add_argument(
        '--classes', nargs='+', metavar='NAME', help='names of the label values 0, 1, ...'
    )
    parser.add_argument('--run', action='store_true', help='train, test and draw')
    args = parser.parse_args(argv)
    for name in ('epochs', 'batch_size'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f'--{name.replace("_", "-")}: expected at least 1, got {value}')
    if args.task == 'segmentation' and args.batch_size == 1:
        raise UserError('--batch-size: the batch norms of UperNet need at least 2 images')
    return args


def recognize(args: argparse.Namespace) -> Data:
    """Find out how the data is laid out, and split it if it has no validation images."""
    for path in args.data:
        if not Path(path).exists():
            raise UserError(f'data: no such file or folder: {path}')
    if args.classes and args.task != 'segmentation':
        raise UserError('--classes: names the values of label maps; other data has its own names')
    paths = [Path(path).resolve() for path in args.data]
    options = [args.classes] if args.task == 'segmentation' else []
    return TASKS[args.task].recognize(paths, *options)


def check_data(cfg: Config, serial: bool) -> None:
    """Check all images and annotations of a project.

    Args:
        cfg: Its config.
        serial: Whether to read the images in this process.

    Raises:
        UserError: Something is wrong with them; the message names the first problem.
    """
    options = check_dataset.parse_args([cfg.filename])
    if serial:
        options.workers = 0
    reports = []
    progress: Any = contextlib.nullcontext()
    if not sys.stderr.isatty():
        progress = contextlib.redirect_stderr(io.StringIO())
    with progress:
        for name, dataset, key in check_dataset.opened(cfg, 'all'):
            reports.append(check_dataset.check(name, dataset, key, cfg.model, options))
    problems = [(r.split, p, places) for r in reports for p, places in r.problems.items()]
    if problems:
        split, problem, places = problems[0]
        total = sum(len(places) for *_, places in problems)
        raise UserError(f'data: {total} problems, the first in {split}: {problem}: {places[0]}')


def make_project(args: argparse.Namespace, out: Path) -> int:
    """Write a project that has been checked; return the number of epochs.

    Raises:
        UserError: Data or weights do not fit; nothing is written then.
    """
    data = recognize(args)
    base = base_config(args.task, args.arch)
    schedule = plan(args.task, base, data.train.count, args.batch_size, args.epochs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / 'config.py'
        config.write_text(config_text(args.task, args.arch, base, data, schedule), 'utf-8')
        for file, content in data.files.items():
            (folder / file).write_text(content, 'utf-8')
        cfg = read_config(argparse.Namespace(config=str(config), cfg_options=None))
        weights, notes = starting_weights(check_model(cfg, pretrained=False), args.weights)
        check_data(cfg, serial=data.train.count <= SERIAL)
        notes = [*data.notes, *notes]
        readme = readme_text(args.task, args.arch, data, schedule, notes, out)
        (folder / 'README.md').write_text(readme, 'utf-8')
        with user_errors(f'--out: cannot write {args.out}'):
            shutil.copytree(folder, out)
            torch.save(dict(state_dict=weights), out / 'weights.pth')
    print(f'{len(data.classes)} classes: {", ".join(data.classes[:10])}', end='')
    print(', ...' if len(data.classes) > 10 else '')
    print(f'{data.train.count} training and {data.val.count} validation images')
    print('\n'.join(notes))
    print(f'{schedule.epochs} epochs, batch {schedule.batch}, learning rate {schedule.lr:g}')
    print(f'{args.out}: {", ".join(sorted(path.name for path in out.iterdir()))}')
    return schedule.epochs


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    out = Path(args.out).resolve()
    if out.exists():
        raise UserError(f'--out: {args.out} exists; give another name or remove it')
    check_writable(str(out), '--out')
    check_file(args.weights, '--weights')
    library = TASKS[args.task].library
    if importlib.util.find_spec(library) is None:
        raise UserError(
            f"{args.task} needs '{library}', which is not installed: "
            f'pip install --no-build-isolation {LIBRARIES[library]}'
        )
    epochs = make_project(args, out)
    if not args.run:
        return 0
    for what in ('train', 'test and draw'):
        # In a process each: mmengine keeps the visualizer of the first run for all that follow.
        code = subprocess.run([sys.executable, *commands(out, epochs)[what]]).returncode
        if code:
            return code
    return 0

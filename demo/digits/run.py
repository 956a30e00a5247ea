"""Train DAT++ on handwritten digits with all three MMLab libraries, and show what it learned.

    python -m demo.digits.run

Writes the dataset to data/digits, trains and tests the three configs of configs/digits (first the
classifier, then the detector and the segmentor side by side, both from its weights), and writes

    work_dirs/digits/results.json         metrics, time and peak memory
    work_dirs/digits/<task>.{png,pth}     predictions on validation images; trained weights
    work_dirs/digits/<task>/              logs, checkpoints and predictions

Run again, it resumes what was interrupted and repeats only what changed: a config, the dataset, the
code, or the weights that a task starts from.
"""

import argparse
import hashlib
import json
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass

import rich.box
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

import dat_pp  # noqa: F401  the configs inherit from mmseg

from . import data as digits
from . import figures, jobs
from .jobs import DemoError, Display, Run, only_one, run_together, shown

WORK_DIR, DATA = 'work_dirs/digits', 'data/digits'
CODE = ('projects/dat_pp', 'demo/digits/data.py')
NEXT = """Figures               work_dirs/digits/*.png
What it looks at      docs/explain.md
Test a model          python tools/test.py configs/digits/upernet.py work_dirs/digits/upernet.pth
Train longer          bash demo/digits/run.sh --longer 3
Train on your data    docs/fine_tune.md"""


@dataclass(frozen=True)
class Metric:
    """A metric: its key in the log, its name, the expected minimum, and how it is written."""

    key: str
    name: str
    floor: float
    format: str = '{:.3f}'

    def text(self, metrics: dict[str, float]) -> str:
        return f'{self.name} {self.format.format(metrics[self.key])}'


FIRST, DENSE = 'classification', ('mask-rcnn', 'upernet')
METRICS = {
    'classification': (Metric('accuracy/top1', 'top-1', 97.0, '{:.1f} %'),),
    'mask-rcnn': (
        Metric('coco/bbox_mAP', 'box AP', 0.50),
        Metric('coco/segm_mAP', 'mask AP', 0.45),
    ),
    'upernet': (Metric('mIoU', 'mIoU', 70.0, '{:.1f} %'),),
}


def plan(task: str, start: Run | None, args: argparse.Namespace) -> Run:
    """Find out how far a task is, which starts from the weights of another, or of none."""
    path = jobs.ROOT / 'configs' / 'digits' / f'{task}.py'
    config = Config.fromfile(path, import_custom_modules=False)
    config.train_cfg.max_epochs = round(args.longer * config.train_cfg.max_epochs)
    parts = [config.to_dict(), code_digest(), start and start.key, os.environ.get('DAT_PP_BACKEND')]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()
    folder = jobs.ROOT / WORK_DIR / task
    return Run.load(folder, key, config.train_cfg.max_epochs, args.force)


def code_digest() -> str:
    """SHA-256 of the source files that the metrics depend on."""
    total = hashlib.sha256()
    for name in CODE:
        root = jobs.ROOT / name
        for path in sorted(root.rglob('*')) if root.is_dir() else [root]:
            if path.suffix in {'.py', '.cpp', '.h'}:
                total.update(str(path.relative_to(jobs.ROOT)).encode() + path.read_bytes())
    return total.hexdigest()


def run_task(
    run: Run, start: Run | None, threads: int, display: Display
) -> Generator[None, None, None]:
    """Do what is left of a run: train, test, draw the figure, copy figure and weights."""
    config, predictions = f'configs/digits/{run.task}.py', run.folder / 'predictions.pkl'
    note = ' (nothing changed)' if run.metrics else ''
    if not run.trained:
        command = ['tools/train.py', config, '--work-dir', str(run.folder), '--resume']
        command += ['--no-validate', '--cfg-options', f'train_cfg.max_epochs={run.epochs}']
        if start:
            command.append(f'model.backbone.init_cfg.checkpoint={start.checkpoint}')
        yield from run.stage('train', command, threads, display)
    if not run.metrics:
        command = ['tools/test.py', config, str(run.checkpoint), '--out', str(predictions)]
        command += ['--work-dir', str(run.folder / 'test')]
        yield from run.stage('test', command, threads, display)
        run.metrics = read_metrics(run)
        run.save()
    if run.task == FIRST and not note:
        command = ['-m', 'demo.digits.attention', config, str(run.checkpoint), str(predictions)]
        attention = run.folder.with_name('attention.png')
        yield from run.stage('attention', [*command, str(attention)], threads, display)
    samples = pickle.loads(predictions.read_bytes())
    figure, data_root = run.folder.parent / f'{run.task}.png', jobs.ROOT / DATA
    figures.DRAW[run.task](data_root, samples).savefig(figure)
    shutil.copyfile(run.checkpoint, figure.with_suffix('.pth'))
    display.finish(run.task, ', '.join(m.text(run.metrics) for m in METRICS[run.task]) + note)
    if run.task == FIRST:
        text = figures.digits_as_text(data_root, samples, display.console.width)
        display.console.print(text, f'figure: {shown(figure)}', sep='\n')
        display.console.print(f'what it looks at: {shown(figure.with_name("attention.png"))}')


def read_metrics(run: Run) -> dict[str, float]:
    """Read the metrics that the latest test logged."""
    logs = sorted(run.folder.glob('test/*/*.json'), key=lambda path: path.stat().st_mtime)
    found = json.loads(logs[-1].read_text().splitlines()[-1]) if logs else {}
    for metric in METRICS[run.task]:
        if metric.key not in found:
            raise DemoError(f'{run.task} test failed: no {metric.key} (in {shown(run.folder)})')
    return {metric.key: found[metric.key] for metric in METRICS[run.task]}


def run_demo(args: argparse.Namespace, console: Console) -> list[Run]:
    """Write the dataset and run all tasks."""
    data_root = jobs.ROOT / DATA
    try:
        if digits.convert(data_root):
            console.print(f'dataset: {shown(data_root)}')
    except (ImportError, OSError, ValueError) as error:
        raise DemoError(f'dataset failed: {error}') from error
    first = plan(FIRST, None, args)
    dense = [plan(task, first, args) for task in DENSE]
    cores = os.cpu_count() or 1
    with Display(console) as display:
        run_together([run_task(first, None, cores, display)])
        # A small model uses several cores badly: side by side they take less time.
        threads = max(1, cores // len(dense))
        run_together([run_task(run, first, threads, display) for run in dense])
    return [first, *dense]


def report(runs: list[Run], console: Console) -> list[str]:
    """Print and write the table of results; return what is below the expected minimum."""
    table = Table('task', 'metric', box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for name in ('value', 'at least', 'time', 'CPU time', 'memory'):
        table.add_column(name, justify='right')
    rows, below = [], []
    for run in runs:
        costs = dict(seconds=run.seconds, cpu_seconds=run.cpu_seconds, peak_gib=run.peak_gib)
        cells = f'{run.seconds:.0f} s', f'{run.cpu_seconds:.0f} s', f'{run.peak_gib:.1f} GiB'
        for metric in METRICS[run.task]:
            value = run.metrics[metric.key]
            rows.append(dict(task=run.task, metric=metric.name, value=value, **costs))
            numbers = metric.format.format(value), metric.format.format(metric.floor)
            table.add_row(run.task, metric.name, *numbers, *cells)
            if value < metric.floor:
                below.append(f'{metric.name} {value:.3f} < {metric.floor}')
    (jobs.ROOT / WORK_DIR / 'results.json').write_text(json.dumps(rows, indent=2) + '\n')
    console.print(table)
    console.print(NEXT, soft_wrap=True)
    return below


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--force', action='store_true', help='train everything anew')
    parser.add_argument(
        '--longer',
        type=float,
        default=1,
        metavar='FACTOR',
        help='train FACTOR times as many epochs',
    )
    args = parser.parse_args()
    if not 1 <= args.longer <= 1000:
        parser.error(f'--longer: expected a factor from 1 to 1000, got {args.longer}')
    return args


def main() -> int:
    args = parse_args()
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) == signal.SIG_DFL:  # ignored under nohup
            signal.signal(name, signal.default_int_handler)
    started = time.monotonic()
    console = Console(highlight=False)
    try:
        with only_one(jobs.ROOT / WORK_DIR):
            below = report(run_demo(args, console), console)
    except DemoError as error:
        print(f'digits: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('digits: interrupted; run again, without --force, to resume', file=sys.stderr)
        return 130
    console.print(f'Finished in {(time.monotonic() - started) / 60:.1f} minutes.')
    if below:
        print(f'digits: below the expected minimum: {", ".join(below)}', file=sys.stderr)
    return 1 if below else 0


if __name__ == '__main__':
    sys.exit(main())

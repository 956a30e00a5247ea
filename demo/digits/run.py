"""Train DAT++ on handwritten digits with all three MMLab libraries, and show the results.

    python -m demo.digits.run

Writes the dataset to data/digits, trains and tests the three configs of configs/digits (first the
classifier, then the detector and the segmentor side by side, both from its weights), and writes

    work_dirs/digits/results.{md,json}    metrics, time and peak memory
    work_dirs/digits/<task>.{png,pth}     predictions on validation images; trained weights
    work_dirs/digits/<task>/<run>/        logs, checkpoints and predictions of a run

Run again, it resumes what was interrupted and repeats only what changed: a config, the dataset, the
code, a library, or the weights that a task starts from. Earlier results stay until all new ones are
complete.
"""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Generator
from pathlib import Path

from mmengine.config import Config

import dat_pp  # noqa: F401  the configs inherit from mmseg

from . import data as digits
from . import inputs, jobs
from .display import Display
from .jobs import DemoError, Run, only_one, replacing, run_stage, run_together, shown
from .results import TASKS, Task, read_metrics, write_results

NEXT = """Figures: {work_dir}/classification.png, mask-rcnn.png, upernet.png
Next: the README shows how to put DAT++ into a config of your own; --longer 3 trains longer."""
FIGURES = Path(__file__).with_name('figures.py')
CODE = ('projects/dat_pp', 'tools/train.py', 'tools/test.py')


def run_task(
    task: Task, run: Run, start: Run | None, threads: int, display: Display
) -> Generator[None, None, None]:
    """Do what is left of a run: train, test, draw the figure; then publish weights and figure."""
    config = str(jobs.ROOT / 'configs' / 'digits' / f'{task.name}.py')
    predictions, figure = run.folder / 'predictions.pkl', run.folder / 'figure.png'
    known = bool(run.metrics)
    if not run.trained:
        options = [f'train_cfg.max_epochs={run.epochs}']
        if start:
            options.append(f'model.backbone.init_cfg.checkpoint={start.checkpoint}')
        command = ['tools/train.py', config, '--work-dir', str(run.folder), '--resume']
        command += ['--no-validate', '--cfg-options', *options]
        yield from run_stage(run, 'training', command, threads, display)
        run.trained = True
        run.save()
    if not run.metrics:
        command = ['tools/test.py', config, str(run.checkpoint), '--out', str(predictions)]
        command += ['--work-dir', str(run.folder / 'test')]
        yield from run_stage(run, 'test', command, threads, display)
        run.metrics = read_metrics(task, run.folder / 'test')
        run.save()
    if not figure.exists() or figure.stat().st_mtime < FIGURES.stat().st_mtime:
        command = ['-m', 'demo.digits.figures', task.name, str(predictions), str(figure)]
        yield from run_stage(run, 'figure', command, threads, display)
    for source, suffix in ((run.checkpoint, 'pth'), (figure, 'png')):
        with replacing(run.folder.parents[1] / f'{task.name}.{suffix}') as partial:
            shutil.copyfile(source, partial)
    reached = [f'{m.name} {m.format.format(run.metrics[m.key])}' for m in task.metrics]
    display.finish(task.name, ', '.join(reached) + (' (nothing changed)' if known else ''))


def plan(work_dir: Path, force: bool, longer: float) -> dict[Task, Run]:
    """The run of each task: a complete one, an interrupted one, or a new one."""
    data = digits.digest(jobs.ROOT / 'data' / 'digits')
    code = inputs.code_digest([jobs.ROOT / name for name in CODE])
    versions = inputs.library_versions()
    runs: dict[Task, Run] = {}
    keys: dict[str | None, str] = {None: ''}
    for task in TASKS:
        path = jobs.ROOT / 'configs' / 'digits' / f'{task.name}.py'
        config = Config.fromfile(path, import_custom_modules=False)
        config.train_cfg.max_epochs = max(1, round(longer * config.train_cfg.max_epochs))
        key = inputs.task_key(config, data, keys[task.starts_from], code, versions)
        keys[task.name] = key
        runs[task] = Run.latest(work_dir / task.name, key, config.train_cfg.max_epochs, force)
    return runs


def run_demo(force: bool, longer: float) -> list[dict]:
    """Run everything and return the rows of the table of results."""
    work_dir, data_root = jobs.ROOT / 'work_dirs' / 'digits', jobs.ROOT / 'data' / 'digits'
    try:
        if digits.convert(data_root):
            print(f'dataset: {shown(data_root)}', flush=True)
    except (ImportError, OSError, ValueError) as error:
        raise DemoError(f'dataset failed: {error}') from error
    runs = plan(work_dir, force, longer)
    by_name: dict[str | None, Run] = {task.name: run for task, run in runs.items()}
    with Display() as display:
        # A small model uses several cores badly: tasks run side by side where they can.
        for start in dict.fromkeys(task.starts_from for task in TASKS):
            tasks = [task for task in TASKS if task.starts_from == start]
            threads = max(1, (os.cpu_count() or 1) // len(tasks))
            run_together(
                [run_task(task, runs[task], by_name.get(start), threads, display) for task in tasks]
            )
    rows = write_results(runs, work_dir)
    for run in runs.values():  # now that all is complete, earlier runs can go
        for path in run.folder.parent.glob('*/run.json'):
            if path.parent != run.folder:
                shutil.rmtree(path.parent)
    return rows


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
    work_dir = jobs.ROOT / 'work_dirs' / 'digits'
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) == signal.SIG_DFL:  # ignored under nohup
            signal.signal(name, signal.default_int_handler)
    try:
        with only_one(work_dir):
            rows = run_demo(args.force, args.longer)
    except DemoError as error:
        print(f'digits: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('digits: interrupted; run again, without --force, to resume', file=sys.stderr)
        return 130
    print('\n' + (work_dir / 'results.md').read_text())
    print(NEXT.format(work_dir=shown(work_dir)))
    below = [
        f'{r["metric"]} {r["value"]:.3f} < {r["floor"]}' for r in rows if r['value'] < r['floor']
    ]
    if below:
        print(f'digits: below the expected minimum: {", ".join(below)}', file=sys.stderr)
    return 1 if below else 0


if __name__ == '__main__':
    sys.exit(main())

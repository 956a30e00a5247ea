"""Learn the digits with DAT++ through mmpretrain, mmdet and mmsegmentation, and show the results.

    python -m demo.digits.run

Makes data/digits, trains and tests the three configs of configs/digits, the classifier first and
then side by side the two that start from it, and writes under work_dirs/digits

    results.md, results.json              metrics, wall time and peak memory
    detections.png, segmentations.png     validation scenes: truth beside prediction
    <task>/                               checkpoint, predictions and logs of a task

Run again, it repeats only what changed (config, data, code, or the classifier that the other two
start from) and resumes a training that was interrupted.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'


@dataclass(frozen=True)
class Task:
    """A config of configs/digits, and the metrics to report: key, name, least value to expect."""

    name: str
    metrics: tuple[tuple[str, str, float], ...]
    starts_from: str | None = None

    @property
    def config(self) -> Path:
        return ROOT / 'configs' / 'digits' / f'{self.name}.py'


TASKS = (
    Task('classification', (('accuracy/top1', 'top-1 %', 97.0),)),
    Task(
        'mask-rcnn',
        (('coco/bbox_mAP', 'box AP', 0.50), ('coco/segm_mAP', 'mask AP', 0.45)),
        starts_from='classification',
    ),
    Task('upernet', (('mIoU', 'mIoU %', 70.0),), starts_from='classification'),
)


class StageError(Exception):
    """A stage failed; the message is one line: which, why, and where its log is."""


@dataclass
class Record:
    """What is known of a task, kept as <task>/stage.json."""

    key: str
    train_seconds: float = 0.0
    test_seconds: float = 0.0
    peak_mib: float = 0.0
    trained: bool = False
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, key: str) -> 'Record | None':
        """The record, unless it is missing or of other inputs."""
        try:
            record = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return record if record.key == key else None

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix('.partial')
        partial.write_text(json.dumps(vars(self), indent=2) + '\n')
        partial.replace(path)


def digest(*parts: str | Path) -> str:
    """A number for texts and for the contents of files."""
    total = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def resolved_config(task: Task) -> str:
    """The config with its bases, so that a change in any of them counts."""
    from mmengine.config import Config

    import dat_pp  # noqa: F401

    return Config.fromfile(task.config, import_custom_modules=False).pretty_text


def inputs_key(task: Task, data: dict, keys: dict[str, str]) -> str:
    """Changes when a config, the data, our code, or what a task starts from changes."""
    code = sorted((ROOT / 'projects').rglob('*.py'))
    tools = [TOOLS / name for name in ('train.py', 'test.py')]
    return digest(
        resolved_config(task), data['digest'], keys.get(task.starts_from or '', ''), *code, *tools
    )


def memory_of_group(group: int) -> float:
    """MiB used by a process group, pages shared within it counted once; 0 where unknown."""
    total = 0
    for path in Path('/proc').glob('[0-9]*'):
        try:
            if os.getpgid(int(path.name)) == group:
                pss = re.search(r'^Pss:\s+(\d+)', (path / 'smaps_rollup').read_text(), re.M)
                total += int(pss[1]) if pss else 0
        except OSError:  # it ended meanwhile
            continue
    return total / 1024


def condense(line: str) -> str | None:
    """The part of a log line worth a place in the terminal."""
    progress = re.search(r'Epoch\((\w+)\)\s+(.*)', line)
    if not progress:
        return None
    kind, rest = progress.groups()
    where = ' '.join(re.findall(r'\[[^]]*\]', rest))
    if kind == 'train':
        shown = re.findall(r'\b(?:eta|loss): +\S+', rest)
    elif 'eta:' in rest:
        shown = re.findall(r'\beta: +\S+', rest)
    else:
        shown = re.findall(r'(?:top1|bbox_mAP|segm_mAP|mIoU): +\S+', rest)
    return f'{kind} {where} ' + '  '.join(shown)


RUNNING: set[subprocess.Popen] = set()


def stop_tools() -> None:
    """End all tools that run, with their workers: Ctrl-C does not reach a session of its own."""
    for process in list(RUNNING):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def run_tool(stage: str, command: list[str], log: Path, threads: int) -> tuple[float, float]:
    """Run a tool of ours on some threads, its output into `log` and condensed to the terminal.

    Returns wall seconds and peak MiB. Raises StageError if it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    env = {
        # Waiting threads sleep instead of spinning: ten times faster when the cores are shared.
        'OMP_WAIT_POLICY': 'PASSIVE',
        'OMP_NUM_THREADS': str(threads),
        # glibc keeps the memory of large tensors for the next ones: up to a third faster.
        'MALLOC_MMAP_THRESHOLD_': str(2**30),
        'MALLOC_TRIM_THRESHOLD_': str(2**33),
        **os.environ,
    }
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=env,
        text=True,
        errors='replace',
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    RUNNING.add(process)
    peak = 0.0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, memory_of_group(process.pid))
            time.sleep(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    last = ''
    with open(log, 'w') as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            last = line.strip() or last
            shown = condense(line)
            if shown:
                print(f'  {stage}: {shown}', flush=True)
    code = process.wait()
    RUNNING.discard(process)
    watcher.join()
    if code:
        reason = last if code > 0 else f'killed by signal {-code}'
        raise StageError(f'{stage} failed: {reason[:300]} (log: {shown_path(log)})')
    return time.monotonic() - started, peak


def shown_path(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def make_data(out_dir: Path) -> dict:
    """Write the data unless they are there; returns their manifest."""
    from . import data as digits

    print(f'data: {shown_path(out_dir)}', flush=True)
    try:
        digits.convert(out_dir)
    except (ImportError, OSError, ValueError) as error:
        raise StageError(f'data failed: {error}') from error
    return json.loads((out_dir / digits.MANIFEST).read_text())


def last_checkpoint(folder: Path) -> Path:
    return Path((folder / 'last_checkpoint').read_text().strip())


def read_metrics(folder: Path, task: Task) -> dict[str, float]:
    """The metrics that the newest test under `folder` logged."""
    logs = sorted(folder.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    found = json.loads(logs[-1].read_text().splitlines()[-1]) if logs else {}
    missing = [key for key, _, _ in task.metrics if key not in found]
    if missing:
        raise StageError(f'{task.name} test failed: it reported no {missing[0]} (in: {folder})')
    return {key: found[key] for key, _, _ in task.metrics}


def run_task(task: Task, key: str, work_dir: Path, threads: int) -> Record:
    """Train and test, or what is left of it."""
    folder = work_dir / task.name
    state = folder / 'stage.json'
    record = Record.read(state, key)
    if record is None:
        shutil.rmtree(folder, ignore_errors=True)
        record = Record(key)
        record.write(state)
    if not record.trained:
        command = [str(TOOLS / 'train.py'), str(task.config), '--work-dir', str(folder), '--resume']
        if task.starts_from:
            start = last_checkpoint(work_dir / task.starts_from)
            command += ['--cfg-options', f'model.backbone.init_cfg.checkpoint={start}']
        started = time.monotonic()
        try:
            _, peak = run_tool(f'{task.name} training', command, folder / 'train.log', threads)
            record.peak_mib = max(record.peak_mib, peak)
            record.trained = True
        finally:  # the time of an interrupted training counts, too
            record.train_seconds += time.monotonic() - started
            record.write(state)
    if not record.metrics:
        command = [
            str(TOOLS / 'test.py'),
            str(task.config),
            str(last_checkpoint(folder)),
            '--work-dir',
            str(folder / 'test'),
            '--out',
            str(folder / 'predictions.pkl'),
        ]
        record.test_seconds, _ = run_tool(
            f'{task.name} test', command, folder / 'test.log', threads
        )
        record.metrics = read_metrics(folder / 'test', task)
        record.write(state)
    else:
        print(f'{task.name}: done before, nothing changed', flush=True)
    return record


def run_side_by_side(
    tasks: list[Task], keys: dict[str, str], work_dir: Path, threads: int
) -> dict[str, Record]:
    """Run tasks that do not need each other; if one fails the others are stopped."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        try:
            futures = [
                pool.submit(run_task, task, keys[task.name], work_dir, threads) for task in tasks
            ]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stop_tools()
            raise
    return {task.name: future.result() for task, future in zip(tasks, futures, strict=True)}


def result_rows(records: dict[str, Record]) -> list[dict]:
    rows = []
    for task in TASKS:
        record = records[task.name]
        for key, name, floor in task.metrics:
            rows.append(
                dict(
                    task=task.name,
                    metric=name,
                    value=record.metrics[key],
                    floor=floor,
                    train_seconds=round(record.train_seconds, 1),
                    test_seconds=round(record.test_seconds, 1),
                    peak_mib=round(record.peak_mib),
                )
            )
    return rows


def write_results(rows: list[dict], work_dir: Path) -> str:
    lines = [
        '| task | metric | value | at least | training | test | peak memory of training |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        digits_shown = 1 if row['metric'].endswith('%') else 3
        value, floor = (f'{row[key]:.{digits_shown}f}' for key in ('value', 'floor'))
        lines.append(
            f'| {row["task"]} | {row["metric"]} | {value} | {floor} | {row["train_seconds"]:.0f} s '
            f'| {row["test_seconds"]:.0f} s | {row["peak_mib"] / 1024:.1f} GiB |'
        )
    text = '\n'.join(lines) + '\n'
    (work_dir / 'results.md').write_text(text)
    (work_dir / 'results.json').write_text(json.dumps(rows, indent=2) + '\n')
    return text


def draw_pictures(data_root: Path, work_dir: Path) -> None:
    from .pictures import draw_detections, draw_segmentations

    draw_detections(
        data_root, work_dir / 'mask-rcnn' / 'predictions.pkl', work_dir / 'detections.png'
    )
    draw_segmentations(
        data_root, work_dir / 'upernet' / 'predictions.pkl', work_dir / 'segmentations.png'
    )


def run(data_root: Path, work_dir: Path, force: bool) -> list[dict]:
    """Everything; returns the rows of the results table."""
    data = make_data(data_root)
    if force:
        shutil.rmtree(work_dir, ignore_errors=True)
    keys: dict[str, str] = {}
    for task in TASKS:
        keys[task.name] = inputs_key(task, data, keys)
    records: dict[str, Record] = {}
    # Small models use several cores badly: what can run side by side does.
    for start in dict.fromkeys(task.starts_from for task in TASKS):
        tasks = [task for task in TASKS if task.starts_from == start]
        threads = max(1, (os.cpu_count() or 1) // len(tasks))
        records |= run_side_by_side(tasks, keys, work_dir, threads)
    rows = result_rows(records)
    print('\n' + write_results(rows, work_dir))
    try:
        draw_pictures(data_root, work_dir)
    except Exception as error:
        raise StageError(f'pictures failed: {error!r}') from error
    for name in ('results.md', 'results.json', 'detections.png', 'segmentations.png'):
        print(shown_path(work_dir / name))
    return rows


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--force', action='store_true', help='train all anew')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # The configs name the data relative to the repository.
        rows = run(ROOT / 'data' / 'digits', ROOT / 'work_dirs' / 'digits', args.force)
    except StageError as error:
        print(f'digits: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('digits: interrupted; the same command goes on from here', file=sys.stderr)
        return 130
    below = [
        f'{row["metric"]} {row["value"]:.3f} < {row["floor"]}'
        for row in rows
        if row['value'] < row['floor']
    ]
    if below:
        print(f'digits: below what is expected: {", ".join(below)}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())

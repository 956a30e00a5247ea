"""Runs of a task, resumable, and the commands that they consist of, side by side."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from .display import Display

ROOT = Path(__file__).resolve().parents[2]  # the configs name the dataset relative to it
ENV = {
    # Waiting threads sleep instead of spinning: ten times faster when cores are shared.
    'OMP_WAIT_POLICY': 'PASSIVE',
    # glibc keeps the memory of large tensors for later ones: up to a third faster.
    'MALLOC_MMAP_THRESHOLD_': str(2**30),
    'MALLOC_TRIM_THRESHOLD_': str(2**33),
}


class DemoError(Exception):
    """A step failed; the message is one line that says which, why, and where its log is."""


@dataclass
class Run:
    """One run of a task, kept in run.json in its folder <task>/<time>."""

    folder: Path
    key: str  # SHA-256 of everything that the numbers depend on
    epochs: int
    trained: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    # Per stage: wall seconds, CPU seconds, peak MiB; interrupted attempts count.
    costs: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def latest(cls, root: Path, key: str, epochs: int, force: bool) -> 'Run':
        """The latest run with this key, or a new one if there is none or it is forced."""
        for path in [] if force else sorted(root.glob('*/run.json'), reverse=True):
            with contextlib.suppress(ValueError, TypeError):
                run = cls(path.parent, **json.loads(path.read_text()))
                if run.key == key:
                    return run
        return cls(root / datetime.now().strftime('%Y%m%d_%H%M%S_%f'), key, epochs)

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = asdict(self)
        del content['folder']
        with replacing(self.folder / 'run.json') as partial:
            partial.write_text(json.dumps(content, indent=2) + '\n')

    @property
    def task(self) -> str:
        return self.folder.parent.name

    @property
    def checkpoint(self) -> Path:
        return self.folder / Path((self.folder / 'last_checkpoint').read_text().strip()).name


@contextlib.contextmanager
def only_one(folder: Path) -> Generator[None, None, None]:
    """Hold a lock in `folder`; raises DemoError if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f'another run of the demo is writing to {shown(folder)}') from None
        yield


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """A path to write to, which becomes `path` once it is complete."""
    partial = path.with_name(f'.{path.name}.partial')
    yield partial
    partial.replace(path)


def run_stage(
    run: Run, stage: str, command: list[str], threads: int, display: Display
) -> Generator[None, None, None]:
    """Run a Python command, its output to <stage>.log, yielding while it runs.

    Closing the generator ends the command. Raises DemoError if it fails.
    """
    run.save()
    log = run.folder / f'{stage}.log'
    display.start_stage(run.task, stage)
    started = time.monotonic()
    with open(log, 'a') as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**ENV, 'OMP_NUM_THREADS': str(threads), **os.environ},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ended, peak = None, 0.0
    try:
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, peak_mib(process.pid))
            display.show(run.task, tail(log), run.epochs)
            yield
    finally:
        if not (ended and ended[0]):
            os.killpg(process.pid, signal.SIGTERM)
            ended = os.wait4(process.pid, 0)
        _, status, usage = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds, cpu_seconds, earlier_peak = run.costs.get(stage, (0, 0, 0))
        run.costs[stage] = [
            seconds + time.monotonic() - started,
            cpu_seconds + usage.ru_utime + usage.ru_stime,
            max(peak, earlier_peak),
        ]
        run.save()
    if process.returncode:
        reason = [line for line in ['no output', *tail(log).splitlines()] if line.strip()][-1]
        if process.returncode < 0:
            reason = f'killed by {signal.Signals(-process.returncode).name}'
        raise DemoError(f'{run.task} {stage} failed: {reason[:300]} (log: {shown(log)})')


def peak_mib(pid: int) -> float:
    """Peak resident memory of a process; 0 where unknown. (`ru_maxrss` includes its parent's.)"""
    with contextlib.suppress(OSError):
        found = re.search(r'^VmHWM:\s+(\d+)', Path(f'/proc/{pid}/status').read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def tail(log: Path) -> str:
    """The last lines of a log."""
    with open(log, 'rb') as file:
        file.seek(max(0, log.stat().st_size - 4096))
        return file.read().decode(errors='replace')


def shown(path: Path) -> Path:
    """A path as messages name it, relative to the repository."""
    return path.relative_to(ROOT)


def run_together(jobs: Sequence[Generator[None, None, None]]) -> None:
    """Advance all jobs until they end; if one fails or is interrupted, the others are ended."""
    running = list(jobs)
    try:
        while running:
            running = [job for job in running if next(job, 'ended') != 'ended']
            time.sleep(0.1)
    finally:
        for job in jobs:
            job.close()

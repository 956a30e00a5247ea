"""Runs the commands of a task in the background, resumes them, and shows how far they are."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parents[2]  # the configs name the dataset relative to it
ENV = {
    # Waiting threads sleep instead of spinning: ten times faster when cores are shared.
    'OMP_WAIT_POLICY': 'PASSIVE',
    # glibc keeps the memory of large tensors for later ones: up to a third faster.
    'MALLOC_MMAP_THRESHOLD_': str(2**30),
    'MALLOC_TRIM_THRESHOLD_': str(2**33),
}
# A line that mmengine logs: mode, epoch (training only), iteration of how many, loss.
LOGGED = re.compile(
    r'Epoch\((\w+)\)\s+(?:\[\s*(\d+)\])?\[\s*(\d+)/(\d+)\](?:.*?\bloss: +([\d.]+))?'
)


class DemoError(Exception):
    """A step failed; the message is one line that says which, why, and where its log is."""


@contextlib.contextmanager
def only_one(folder: Path) -> Generator[None, None, None]:
    """Hold a lock in `folder`; raises DemoError if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w', encoding='utf-8') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f'another run of the demo is writing to {shown(folder)}') from None
        yield


class Display(Progress):
    """A live bar per task in a terminal, plain lines elsewhere; reads the logs of mmengine."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn('{task.description}'),
            BarColumn(bar_width=None),
            TextColumn('{task.fields[note]}'),
            TimeElapsedColumn(),
            expand=True,
            console=console,
            disable=not console.is_terminal,
        )
        self.bars: dict[str, TaskID] = {}
        self.printed: dict[str, int] = {}

    def start_stage(self, task: str, stage: str) -> None:
        """Begin a stage of a task: the bar pulses until the first line in the log."""
        if task in self.bars:
            self.remove_task(self.bars[task])
        self.bars[task] = self.add_task(f'{task}: {stage}', total=None, note='starting')
        self.printed[task] = 0
        if self.disable:
            self.console.print(f'{task}: {stage}')

    def show(self, task: str, log: str, epochs: int) -> None:
        """Update the bar of a task from the last lines of its log; `epochs` is the total."""
        found = LOGGED.findall(log)
        if not found:
            return
        mode, epoch, iteration, iterations, loss = found[-1]
        done = int(iteration) / int(iterations)
        if epoch:
            done = (int(epoch) - 1 + done) / epochs
        note = f'{done:.0%}' + (f', loss {float(loss):.2f}' if loss else '')
        self.update(self.bars[task], total=1, completed=done, note=note)
        if self.disable and int(4 * done) > self.printed[task]:
            self.printed[task] = int(4 * done)
            self.console.print(f'{task}: {mode} {note}')

    def finish(self, task: str, note: str) -> None:
        """Fill the bar of a task, with its metrics beside it."""
        if task not in self.bars:
            self.bars[task] = self.add_task(task, note='')
        self.update(self.bars[task], description=task, total=1, completed=1, note=note)
        if self.disable:
            self.console.print(f'{task}: {note}')


@dataclass
class Run:
    """How far a task is, kept in run.json in its folder."""

    folder: Path
    key: str  # SHA-256 of everything that the metrics depend on
    epochs: int
    metrics: dict[str, float] = field(default_factory=dict)  # empty until tested
    seconds: float = 0  # interrupted attempts count
    cpu_seconds: float = 0
    peak_gib: float = 0

    @classmethod
    def load(cls, folder: Path, key: str, epochs: int, force: bool) -> 'Run':
        """Read the run in a folder; empty the folder if its key differs, or if forced."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            run = cls(folder, **json.loads((folder / 'run.json').read_text()))
            if run.key == key and not force:
                return run
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, key, epochs)
        run.save()
        return run

    def save(self) -> None:
        content = asdict(self)
        del content['folder']
        (self.folder / 'run.json').write_text(json.dumps(content, indent=2) + '\n')

    @property
    def task(self) -> str:
        return self.folder.name

    @property
    def checkpoint(self) -> Path:
        """The checkpoint after the last epoch."""
        return self.folder / f'epoch_{self.epochs}.pth'

    @property
    def trained(self) -> bool:
        """Whether the last checkpoint that was written completely is of the last epoch."""
        last = self.folder / 'last_checkpoint'
        return last.is_file() and Path(last.read_text().strip()).name == self.checkpoint.name

    def stage(
        self, name: str, command: Sequence[str], threads: int, display: Display
    ) -> Generator[None, None, None]:
        """Run a Python command, its output to <name>.log, yielding while it runs.

        Closing the generator ends the command. Raises DemoError if it fails.
        """
        log = self.folder / f'{name}.log'
        display.start_stage(self.task, name)
        started, ended = time.monotonic(), 0
        with open(log, 'a', encoding='utf-8') as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**ENV, 'OMP_NUM_THREADS': str(threads), **os.environ},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while not ended:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                display.show(self.task, tail(log), self.epochs)
                yield
        finally:
            if not ended:
                os.killpg(process.pid, signal.SIGTERM)
                _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.seconds += time.monotonic() - started
            self.cpu_seconds += usage.ru_utime + usage.ru_stime
            self.peak_gib = max(self.peak_gib, usage.ru_maxrss / 2**20)
            self.save()
        if process.returncode:
            reason = [line for line in ['no output', *tail(log).splitlines()] if line.strip()][-1]
            if process.returncode < 0:
                reason = f'killed by {signal.Signals(-process.returncode).name}'
            raise DemoError(f'{self.task} {name} failed: {reason[:300]} (log: {shown(log)})')


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

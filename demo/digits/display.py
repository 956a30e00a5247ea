"""Live progress of several tasks: a bar per task in a terminal, plain lines elsewhere."""

import re

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# A line that mmengine logs: mode, epoch (training only), iteration of how many, loss.
LOGGED = re.compile(
    r'Epoch\((\w+)\)\s+(?:\[\s*(\d+)\])?\[\s*(\d+)/(\d+)\](?:.*?\bloss: +([\d.]+))?'
)


class Display(Progress):
    """Shows how far each task is, read from the log that mmengine writes."""

    def __init__(self) -> None:
        console = Console(highlight=False, soft_wrap=True)
        super().__init__(
            TextColumn('{task.description}'),
            BarColumn(),
            TextColumn('{task.percentage:>3.0f} %'),
            TextColumn('{task.fields[note]}'),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self.bars: dict[str, TaskID] = {}
        self.shown: dict[str, int] = {}

    def start_stage(self, task: str, stage: str) -> None:
        """Begin a stage of a task at 0 %."""
        if task not in self.bars:
            self.bars[task] = self.add_task('', total=1, note='')
        self.reset(self.bars[task], description=f'{task}: {stage}', total=1, note='')
        self.shown[task] = 0
        if self.disable:
            self.console.print(f'{task}: {stage}')

    def show(self, task: str, log: str, epochs: int) -> None:
        """Update the bar of a task from the last lines of its log; `epochs` is the total."""
        found = LOGGED.findall(log)
        if not found:
            return
        mode, epoch, iteration, iterations, loss = found[-1]
        done = int(iteration) / int(iterations)
        note = ''
        if epoch:
            done = (int(epoch) - 1 + done) / epochs
            note = f'epoch {epoch}/{epochs}, loss {loss}'
        self.update(self.bars[task], completed=done, note=note)
        if self.disable and int(4 * done) > self.shown[task]:
            self.shown[task] = int(4 * done)
            self.console.print(f'{task}: {mode} {100 * done:.0f} % {note}'.rstrip())

    def finish(self, task: str, message: str) -> None:
        """Replace the bar of a task by a line."""
        if task in self.bars:
            self.remove_task(self.bars.pop(task))
        self.console.print(f'{task}: {message}')

"""The tasks of the demo, their metrics, and the table of results."""

import json
from dataclasses import dataclass
from pathlib import Path

from .jobs import DemoError, Run, replacing, shown


@dataclass(frozen=True)
class Metric:
    """A metric: its key in the log, its name, the expected minimum, and how it is written."""

    key: str
    name: str
    floor: float
    format: str = '{:.3f}'


@dataclass(frozen=True)
class Task:
    """A config of configs/digits, its metrics, and the task whose weights it starts from."""

    name: str
    metrics: tuple[Metric, ...]
    starts_from: str | None = None


TASKS = (
    Task('classification', (Metric('accuracy/top1', 'top-1', 97.0, '{:.1f} %'),)),
    Task(
        'mask-rcnn',
        (Metric('coco/bbox_mAP', 'box AP', 0.50), Metric('coco/segm_mAP', 'mask AP', 0.45)),
        'classification',
    ),
    Task('upernet', (Metric('mIoU', 'mIoU', 70.0, '{:.1f} %'),), 'classification'),
)


def read_metrics(task: Task, folder: Path) -> dict[str, float]:
    """The metrics that the latest test under `folder` logged."""
    logs = sorted(folder.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    found = json.loads(logs[-1].read_text().splitlines()[-1]) if logs else {}
    for metric in task.metrics:
        if metric.key not in found:
            raise DemoError(f'{task.name} test failed: no {metric.key} (in {shown(folder)})')
    return {metric.key: found[metric.key] for metric in task.metrics}


def write_results(runs: dict[Task, Run], work_dir: Path) -> list[dict]:
    """Write results.json and results.md, and return the rows."""
    rows = []
    text = '| task | metric | value | at least | training | its CPU time | test | peak memory |\n'
    text += '|---|---|---|---|---|---|---|---|\n'
    for task, run in runs.items():
        seconds, cpu_seconds, peak = run.costs['training']
        costs = dict(
            epochs=run.epochs,
            train_seconds=seconds,
            train_cpu_seconds=cpu_seconds,
            test_seconds=run.costs['test'][0],
            peak_mib=peak,
        )
        for metric in task.metrics:
            value = run.metrics[metric.key]
            rows.append(
                dict(task=task.name, metric=metric.name, value=value, floor=metric.floor, **costs)
            )
            written, floor = (metric.format.format(number) for number in (value, metric.floor))
            text += f'| {task.name} | {metric.name} | {written} | {floor} | {seconds:.0f} s '
            text += f'| {cpu_seconds:.0f} s | {costs["test_seconds"]:.0f} s '
            text += f'| {peak / 1024:.1f} GiB |\n'
    for name, content in (('results.md', text), ('results.json', json.dumps(rows, indent=2))):
        with replacing(work_dir / name) as partial:
            partial.write_text(content)
    return rows

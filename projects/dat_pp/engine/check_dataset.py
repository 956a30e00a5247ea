"""Check that the data of a config exists, is complete and can be read, before training.

    python tools/misc/check_dataset.py CONFIG [--split train] [--fast] [--out problems.txt]

Several processes look for the files and decode images and label maps. Label values, sizes, and
COCO's categories, boxes and polygons are compared with what the config's dataset expects.
Exit code: 0 if all is well, 1 for problems in the data, 2 for a wrong argument.
"""

import argparse
import os
import os.path as osp
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from .class_counts import check_class_count
from .coco_annotations import coco_problems
from .config import config_parser, read_config
from .datasets import (
    class_folders,
    described,
    image_folder,
    is_local,
    leaf_datasets,
    load,
    open_dataset,
)
from .errors import UserError, message_of
from .noise import silence
from .preflight import check_evaluator
from .sample_files import Sample, in_processes, inspect_samples

SPLITS = ('train', 'val', 'test')
SHOWN = 5  # problems of each type; --out writes all
# Numbers of images in the full datasets.
KNOWN = {
    'ImageNet': {'train': 1_281_167, 'val': 50_000},
    'CocoDataset': {'train': 118_287, 'val': 5_000},
    'ADE20KDataset': {'train': 20_210, 'val': 2_000},
}


@dataclass
class Report:
    """What was found in one dataset.

    ``problems`` maps each type of problem to the places where it was found.
    """

    split: str
    dataset: str
    images: int = 0
    classes: int | None = None
    annotations: int = 0
    folders: list[str] | None = None
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, problem: str, where: str) -> None:
        self.problems.setdefault(problem, []).append(where)

    @property
    def count(self) -> int:
        return sum(map(len, self.problems.values()))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = config_parser(__doc__.split('\n', 1)[0])
    parser.add_argument('--split', choices=[*SPLITS, 'all'], default='all')
    parser.add_argument(
        '--fast', action='store_true', help='look for files and parse annotations without decoding'
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=_cpu_count(),
        help='number of worker processes (default: %(default)s); 0 reads in the main process',
    )
    parser.add_argument('--out', metavar='FILE', help='write all problems to this new text file')
    args = parser.parse_args(argv)
    if args.workers < 0:
        raise UserError(f'--workers: {args.workers} is negative')
    if args.out and osp.exists(args.out):
        raise UserError(f'--out: {args.out} exists; give another name or remove it')
    if args.out and not osp.isdir(osp.dirname(args.out) or '.'):
        raise UserError(f'--out: no such folder: {osp.dirname(args.out)}')
    return args


def _cpu_count() -> int:
    """Number of CPUs that this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chosen_datasets(cfg: Config, split: str) -> Iterator[tuple[str, dict, str]]:
    """Yield name, config and config key of each dataset to check, and each dataset only once."""
    seen = []
    loaders = [name for name in SPLITS if split in (name, 'all') and cfg.get(f'{name}_dataloader')]
    if not loaders:
        raise UserError(f'config {cfg.filename}: no datasets: {split}_dataloader is not set')
    for name in loaders:
        key = f'{name}_dataloader.dataset'
        leaves = list(leaf_datasets(cfg[f'{name}_dataloader'].dataset, key))
        for index, (dataset_cfg, leaf_key) in enumerate(leaves):
            same = {k: v for k, v in dataset_cfg.items() if k != 'pipeline'}
            if same not in seen:
                seen.append(same)
                yield name if len(leaves) == 1 else f'{name}[{index}]', dataset_cfg, leaf_key


def opened(cfg: Config, split: str) -> list[tuple[str, Any, str]]:
    """Open each dataset to check: its name, the dataset and its config key.

    Raises:
        UserError: A path does not exist, or the model has another number of classes.
    """
    datasets = []
    for name, dataset_cfg, key in chosen_datasets(cfg, split):
        # Check every image, also those that training would leave out.
        every = {'filter_cfg': None} if 'filter_cfg' in dataset_cfg else {}
        dataset = open_dataset({**dataset_cfg, **every}, key)
        if dataset is not None:
            check_class_count(cfg.get('model') or {}, dataset, key)
        check_evaluator(cfg, f'{name}_evaluator')
        datasets.append((name, dataset, key))
    return datasets


def check(split: str, dataset: Any, key: str, model: dict, args: argparse.Namespace) -> Report:
    """Check one dataset."""
    report = Report(split, type(dataset).__name__)
    if dataset is None:
        report.dataset = '-'
        report.notes.append(f'{key} is not a dataset of MMLab: nothing was checked')
        return report
    classes = dataset.metainfo.get('classes')
    report.classes = len(classes) if classes else None
    _check_folders(dataset, report)
    is_coco = hasattr(dataset, 'COCOAPI') and dataset.ANN_ID_UNIQUE
    try:
        with silence():
            if is_coco:
                report.annotations, notes = coco_problems(dataset.ann_file, classes, report.add)
                report.notes += notes
            load(dataset)
    except Exception as error:
        report.add('annotations that cannot be read', f'{described(dataset)}: {message_of(error)}')
        return report
    if report.classes is None:
        check_class_count(model, dataset, key)
        report.classes = len(dataset.metainfo.get('classes') or ()) or None

    samples = list(_samples(dataset, report, count=not is_coco))
    allowed = allowed_labels(dataset)
    inspect = partial(inspect_samples, allowed=allowed, fast=args.fast)
    for problem, where in in_processes(inspect, samples, args.workers, split):
        report.add(problem, where)
    _check_other_label_maps(dataset, samples, report)
    expected = KNOWN.get(report.dataset, {}).get(split)
    is_real = classes is not None and classes == type(dataset).METAINFO.get('classes')
    if is_real and expected and report.images != expected:
        report.notes.append(
            f'{report.images:,} images; the full {report.dataset.removesuffix("Dataset")} has '
            f'{expected:,}'
        )
    return report


def _check_folders(dataset: Any, report: Report) -> None:
    """Compare the number of class folders with the number of classes."""
    report.folders = class_folders(dataset)
    if report.folders is None:
        return
    if report.classes is not None and len(report.folders) != report.classes:
        found = f'{image_folder(dataset)}: {len(report.folders)} folders, {report.classes} classes'
        report.add('wrong number of class folders', found)
        # mmpretrain refuses a wrong number of class names; without names the images are checked.
        dataset._metainfo = {k: v for k, v in dataset.metainfo.items() if k != 'classes'}


def _samples(dataset: Any, report: Report, count: bool) -> Iterator[Sample]:
    """Yield the samples; count images, annotations and images per class on the way."""
    used: Counter[int] = Counter()
    remote = 0
    report.images = len(dataset)
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        label, label_map, image = (info.get(k) for k in ('gt_label', 'seg_map_path', 'img_path'))
        labels = [] if label is None else np.atleast_1d(label).tolist()
        used.update(labels)
        report.annotations += count * (len(labels) + bool(label_map))
        wrong = [each for each in labels if report.classes and not 0 <= each < report.classes]
        if wrong and not report.problems.get('wrong number of class folders'):
            report.add('wrong labels', f'{image}: class {wrong[0]} of {report.classes}')
        if image and is_local(image):
            size = (info['width'], info['height']) if 'width' in info else None
            yield Sample(image, label_map, size)
        else:
            remote += 1
    if remote:
        report.notes.append(f'{remote:,} images are not files on this machine: not checked')
    for index, name in enumerate(report.folders or ()):
        if not used[index]:
            report.add('empty class folders', osp.join(image_folder(dataset), name))


def allowed_labels(dataset: Any) -> frozenset[int] | None:
    """Return the values that a label map file may hold; None if the dataset does not say."""
    classes = dataset.metainfo.get('classes')
    if not classes or not hasattr(dataset, 'reduce_zero_label'):
        return None
    # label_map maps the values in the files to the classes in use.
    values = getattr(dataset, 'label_map', None) or range(len(classes))
    first = int(bool(dataset.reduce_zero_label))
    ignored = {getattr(dataset, 'ignore_index', 255), 255, *range(first)}
    return frozenset({value + first for value in values} | ignored)


def _check_other_label_maps(dataset: Any, samples: Sequence[Sample], report: Report) -> None:
    """Report label maps without an image, of which the dataset does not know."""
    folder = (getattr(dataset, 'data_prefix', None) or {}).get('seg_map_path')
    suffix = getattr(dataset, 'seg_map_suffix', None)
    if not folder or not suffix or dataset.ann_file or not osp.isdir(folder):
        return
    known = {osp.normpath(sample.label_map) for sample in samples if sample.label_map}
    for path in sorted(Path(folder).rglob(f'*{suffix}')):
        if osp.normpath(path) not in known:
            report.add('label maps without an image', str(path))


def compare_folders(reports: Sequence[Report]) -> None:
    """Compare the class folders of the splits: their sorted names number the classes."""
    with_folders = [(report, set(report.folders)) for report in reports if report.folders]
    for report, folders in with_folders[1:]:
        first, expected = with_folders[0]
        for one, other, names in (
            (first, report, expected - folders),
            (report, first, folders - expected),
        ):
            for name in sorted(names):
                where = f'{name} is in {one.split}, not in {other.split}'
                report.add('class folders that differ between splits', where)


def show(reports: Sequence[Report]) -> None:
    """Print one line per dataset, then the notes and the first problems of each type."""
    rows: list[tuple[str, ...]] = [
        ('split', 'dataset', 'images', 'classes', 'annotations', 'problems')
    ]
    for each in reports:
        numbers = (each.images, each.classes, each.annotations, each.count)
        texts = ['-' if number is None else f'{number:,}' for number in numbers]
        rows.append((each.split, each.dataset, *texts))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        ]
        print('  '.join(cells))
    for each in reports:
        for note in each.notes:
            print(f'note: {each.split}: {note}')
    for each in reports:
        for problem, places in each.problems.items():
            print(f'{each.split}: {problem}: {len(places):,}')
            for place in places[:SHOWN]:
                print(f'    {place}')
            if len(places) > SHOWN:
                print(f'    ... and {len(places) - SHOWN:,} more; --out FILE lists all')


def write(reports: Sequence[Report], path: str) -> None:
    """Write all problems, one per line."""
    with open(path, 'x', encoding='utf-8') as file:
        for report in reports:
            for problem, places in report.problems.items():
                file.writelines(f'{report.split}: {problem}: {place}\n' for place in places)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    cfg = read_config(args)
    try:
        datasets = opened(cfg, args.split)
        reports = [check(*each, cfg.get('model') or {}, args) for each in datasets]
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        return 130
    except BrokenProcessPool as error:
        raise UserError(
            f'--workers: one of {args.workers} processes was killed, perhaps for lack of memory; '
            'try fewer'
        ) from error
    compare_folders(reports)
    show(reports)
    if args.out:
        write(reports, args.out)
    problems = sum(report.count for report in reports)
    print(f'{problems:,} problems' if problems else 'all is well')
    return int(problems > 0)

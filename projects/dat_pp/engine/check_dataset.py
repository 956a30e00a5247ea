"""Check that the data a config names is there, complete and readable, before anybody trains.

    python tools/misc/check_dataset.py CONFIG [--split train] [--fast] [--out problems.txt]

Files are looked for and images and label maps decoded by several processes. Label values, sizes,
COCO's categories, boxes and outlines are compared with what the config's data set expects.
Exit code: 0 all is well, 1 problems in the data, 2 something given cannot be used.
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
SHOWN = 5  # problems of a kind; --out writes all
# Images of the real data sets.
KNOWN = {
    'ImageNet': {'train': 1_281_167, 'val': 50_000},
    'CocoDataset': {'train': 118_287, 'val': 5_000},
    'ADE20KDataset': {'train': 20_210, 'val': 2_000},
}


@dataclass
class Report:
    """What was found in one data set."""

    split: str
    kind: str
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
        '--fast', action='store_true', help='look for files and parse annotations; decode nothing'
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=len(os.sched_getaffinity(0)),
        help='processes that read files (default: %(default)s); 0 reads in this one',
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


def chosen_datasets(cfg: Config, split: str) -> Iterator[tuple[str, dict, str]]:
    """Name, config and config key of each data set to check; one named twice comes once."""
    seen = []
    loaders = [name for name in SPLITS if split in (name, 'all') and cfg.get(f'{name}_dataloader')]
    if not loaders:
        raise UserError(f'config {cfg.filename}: no data sets: {split}_dataloader is not set')
    for name in loaders:
        key = f'{name}_dataloader.dataset'
        leaves = list(leaf_datasets(cfg[f'{name}_dataloader'].dataset, key))
        for index, (dataset_cfg, leaf_key) in enumerate(leaves):
            same = {k: v for k, v in dataset_cfg.items() if k != 'pipeline'}
            if same not in seen:
                seen.append(same)
                yield name if len(leaves) == 1 else f'{name}[{index}]', dataset_cfg, leaf_key


def opened(cfg: Config, split: str) -> list[tuple[str, Any, str]]:
    """Name, data set and config key of each data set to check; mistakes end it here."""
    datasets = []
    for name, dataset_cfg, key in chosen_datasets(cfg, split):
        # Every image is checked, also those that training would leave out.
        every = {'filter_cfg': None} if 'filter_cfg' in dataset_cfg else {}
        dataset = open_dataset({**dataset_cfg, **every}, key)
        if dataset is not None:
            check_class_count(cfg.get('model') or {}, dataset, key)
        check_evaluator(cfg, f'{name}_evaluator')
        datasets.append((name, dataset, key))
    return datasets


def check(split: str, dataset: Any, key: str, model: dict, args: argparse.Namespace) -> Report:
    """Check one data set."""
    report = Report(split, type(dataset).__name__)
    if dataset is None:
        report.kind = '-'
        report.notes.append(f'{key} is not a data set of MMLab: nothing was checked')
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
    expected = KNOWN.get(report.kind, {}).get(split)
    is_real = classes is not None and classes == type(dataset).METAINFO.get('classes')
    if is_real and expected and report.images != expected:
        report.notes.append(
            f'{report.images:,} images; the full {report.kind.removesuffix("Dataset")} has '
            f'{expected:,}'
        )
    return report


def _check_folders(dataset: Any, report: Report) -> None:
    """As many class folders as classes, none of them empty."""
    report.folders = class_folders(dataset)
    if report.folders is None:
        return
    if report.classes is not None and len(report.folders) != report.classes:
        found = f'{image_folder(dataset)}: {len(report.folders)} folders, {report.classes} classes'
        report.add('wrong number of class folders', found)
        # With the names of the classes mmpretrain would refuse, and no image would be checked.
        dataset._metainfo = {k: v for k, v in dataset.metainfo.items() if k != 'classes'}


def _samples(dataset: Any, report: Report, count: bool) -> Iterator[Sample]:
    """The samples; counts images, annotations and images a class on the way."""
    used, remote = Counter(), 0
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
    """Values that a label map file may hold; None if the data set does not say."""
    classes = dataset.metainfo.get('classes')
    if not classes or not hasattr(dataset, 'reduce_zero_label'):
        return None
    # label_map goes from the values in the files to the classes in use.
    values = getattr(dataset, 'label_map', None) or range(len(classes))
    first = int(bool(dataset.reduce_zero_label))
    ignored = {getattr(dataset, 'ignore_index', 255), 255, *range(first)}
    return frozenset({value + first for value in values} | ignored)


def _check_other_label_maps(dataset: Any, samples: Sequence[Sample], report: Report) -> None:
    """Label maps without an image: images are missing, and the data set cannot know."""
    folder = (getattr(dataset, 'data_prefix', None) or {}).get('seg_map_path')
    suffix = getattr(dataset, 'seg_map_suffix', None)
    if not folder or not suffix or dataset.ann_file or not osp.isdir(folder):
        return
    known = {osp.normpath(sample.label_map) for sample in samples if sample.label_map}
    for path in sorted(Path(folder).rglob(f'*{suffix}')):
        if osp.normpath(path) not in known:
            report.add('label maps without an image', str(path))


def compare_folders(reports: Sequence[Report]) -> None:
    """Classes are numbered by their folders' names: every split needs the same."""
    with_folders = [report for report in reports if report.folders]
    for report in with_folders[1:]:
        first = with_folders[0]
        for one, other in ((first, report), (report, first)):
            for name in sorted(set(one.folders) - set(other.folders)):
                where = f'{name} is in {one.split}, not in {other.split}'
                report.add('class folders that differ between splits', where)


def show(reports: Sequence[Report]) -> None:
    """A line a data set, then the notes and the first problems of each kind."""
    rows = [('split', 'data set', 'images', 'classes', 'annotations', 'problems')]
    for each in reports:
        numbers = (each.images, each.classes, each.annotations, each.count)
        texts = ['-' if number is None else f'{number:,}' for number in numbers]
        rows.append((each.split, each.kind, *texts))
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
    """All problems, one a line."""
    with open(path, 'x') as file:
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
            f'--workers: one of {args.workers} processes was killed, perhaps for want of memory; '
            'try fewer'
        ) from error
    compare_folders(reports)
    show(reports)
    if args.out:
        write(reports, args.out)
    problems = sum(report.count for report in reports)
    print(f'{problems:,} problems' if problems else 'all is well')
    return int(problems > 0)

"""check_dataset.py on tiny data: what it counts, every kind of damage, one line about mistakes."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_tasks import SIZE, TASKS, make_task, save

from dat_pp.engine import check_dataset, sample_files
from dat_pp.engine import config as config_module
from dat_pp.engine.errors import run_main


@dataclass
class Result:
    """Exit code and lines of a call."""

    code: int
    lines: list[str]
    errors: list[str]

    @property
    def table(self) -> list[list[str]]:
        names = ('train ', 'train[', 'val ', 'test ')
        return [line.split() for line in self.lines if line.startswith(names)]

    def __contains__(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@pytest.fixture
def check(capfd) -> Callable[..., Result]:
    """Call the tool as its script does, in this process unless told otherwise."""

    def call(config: object, *argv: object, workers: int = 0) -> Result:
        capfd.readouterr()
        arguments = [str(arg) for arg in (config, '--workers', workers, *argv)]
        code = run_main(check_dataset.main, arguments)
        out, err = capfd.readouterr()
        return Result(code, out.splitlines(), err.splitlines())

    return call


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def assert_one_line(result: Result, *expected: str) -> None:
    assert result.code == 2
    assert len(result.errors) == 1, result.errors
    assert not result.lines
    for text in ('error: ', *expected):
        assert text in result.errors[0]


# What is right


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('name', TASKS)
def test_good_data(name, workers, check, tmp_path):
    result = check(make_task(name, tmp_path).config, workers=workers)
    assert result.code == 0, result.lines
    # The test split is that of validation; it is not checked again.
    assert [[row[0], *row[2:]] for row in result.table] == [
        ['train', '8', '2', '8', '0'],
        ['val', '3', '2', '3', '0'],
    ]
    assert 'all is well' in result
    assert any('8/8' in line for line in result.errors)


def test_images_by_annotation_file(classification, check):
    data = classification.data
    (data / 'meta').mkdir()
    for split in ('train', 'val'):
        images = sorted((data / split).rglob('*.png'))
        lines = [f'{path.name} {"ab".index(path.parent.name)}\n' for path in images]
        for path in images:
            path.rename(data / split / path.name)
        (data / 'meta' / f'{split}.txt').write_text(''.join(lines))
    classification.add_config(
        "for _split, _loader in (('train', train_dataloader), ('val', val_dataloader)):\n"
        "    _loader['dataset'].update(type='ImageNet', split=_split, data_prefix='',\n"
        "                              metainfo=dict(classes=('a', 'b')))\n"
        'del _split, _loader\n'
    )
    result = check(classification.config)
    assert result.code == 0, result.lines
    assert [row[1:3] for row in result.table] == [['ImageNet', '8'], ['ImageNet', '3']]

    (data / 'train' / '5.png').unlink()
    with (data / 'meta' / 'train.txt').open('a') as file:
        file.write('4.png 2\n')
    result = check(classification.config, '--fast')
    assert result.code == 1
    assert str(data / 'train' / '5.png') in result
    assert '4.png: class 2 of 2' in result


def test_every_dataset_of_a_concatenation(classification, check):
    classification.add_config(
        "train_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[\n"
        "    train_dataloader['dataset'], val_dataloader['dataset']])\n"
    )
    result = check(classification.config, '--split', 'train')
    assert [row[0] for row in result.table] == ['train[0]', 'train[1]']


def test_note_on_a_part_of_the_real_data(segmentation, check):
    segmentation.add_config(
        "model['decode_head']['num_classes'] = 150\n"
        'for _loader in (train_dataloader, val_dataloader):\n'
        "    _loader['dataset'].update(type='ADE20KDataset')\n"
        "    _loader['dataset'].pop('metainfo', None)\n"
        'del _loader\n'
    )
    result = check(segmentation.config)
    assert result.code == 0, result.lines
    assert 'note: train: 8 images; the full ADE20K has 20,210' in result
    path = segmentation.data / 'labels' / 'val' / '1.png'
    save(np.full((SIZE, SIZE), 150, np.uint8), path)  # the last class; 0 is nothing
    assert check(segmentation.config).code == 0
    save(np.full((SIZE, SIZE), 151, np.uint8), path)
    result = check(segmentation.config)
    assert result.code == 1
    assert f'{path}: values without a class: 151' in result


# Damage


@pytest.mark.parametrize(
    ('name', 'file'),
    [
        ('classification', 'train/a/2.png'),
        ('detection', 'train/2.png'),
        ('segmentation', 'images/train/2.jpg'),
        ('segmentation', 'labels/train/2.png'),
    ],
)
def test_damaged_files(name, file, check, tmp_path):
    task = make_task(name, tmp_path)
    path = task.data / file
    path.write_bytes(path.read_bytes()[:-50])
    result = check(task.config)
    assert result.code == 1
    assert result.table[0][-1] == '1'
    assert 'train: unreadable files: 1' in result
    assert f'{path}: ' in result
    assert check(task.config, '--fast').code == 0


@pytest.mark.parametrize(
    ('name', 'file', 'problem'),
    [
        ('classification', 'train/a/2.png', None),  # only the folder says what should be there
        ('detection', 'train/2.png', 'missing files'),
        ('segmentation', 'images/train/2.jpg', 'label maps without an image'),
        ('segmentation', 'labels/train/2.png', 'missing files'),
    ],
)
def test_empty_and_missing_files(name, file, problem, check, tmp_path):
    task = make_task(name, tmp_path)
    path = task.data / file
    path.write_bytes(b'')
    result = check(task.config, '--split', 'train', '--fast')
    assert result.code == 1
    assert 'train: empty files: 1' in result
    assert len(result.table) == 1
    path.unlink()
    result = check(task.config, '--split', 'train')
    if problem is None:
        assert result.table[0][2] == '7'
    else:
        assert result.code == 1
        assert f'train: {problem}: 1' in result


def test_class_folders(classification, check):
    (classification.data / 'val' / 'b').rename(classification.data / 'val' / 'c')
    result = check(classification.config)
    assert result.code == 1
    assert 'b is in train, not in val' in result
    assert 'c is in val, not in train' in result
    (classification.data / 'val' / 'b').mkdir()
    classification.add_config(
        'for _loader in (train_dataloader, val_dataloader):\n'
        "    _loader['dataset']['metainfo'] = dict(classes=('a', 'b'))\n"
        'del _loader\n'
    )
    result = check(classification.config)
    assert f'{classification.data / "val"}: 3 folders, 2 classes' in result
    assert f'{classification.data / "val" / "b"}' in result  # it is empty
    assert result.table[1][2] == '3'  # its images are checked all the same


def annotation(**changes: object) -> Callable[[dict], object]:
    return lambda content: content['annotations'][3].update(changes)


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (annotation(bbox=[20, 8, 20, 16]), 'boxes outside the image: 1'),
        (annotation(bbox=[-5, 8, 12, 16]), 'boxes outside the image: 1'),
        (annotation(bbox=[float('nan'), 8, 12, 16]), 'boxes outside the image: 1'),
        (annotation(segmentation=[[1, 1, 40, 1, 9, 9]]), 'polygons outside the image: 1'),
        (annotation(segmentation=[[1, 1, 9, 9]]), 'invalid polygons: 1'),
        (annotation(segmentation=dict(size=[9, 9], counts='')), 'masks of another size'),
        (annotation(category_id=7), 'annotations of an unknown category: 1'),
        (annotation(image_id=99), 'annotations of an unknown image: 1'),
        (annotation(id=1), 'annotations with the same id: 1'),
        (lambda content: content['annotations'][3].pop('area'), 'without a box or area: 1'),
        (lambda content: content['images'][2].update(width=40), 'wrong sizes: 1'),
        (lambda content: content['images'][2].update(width=0), 'images without a size: 1'),
        (lambda content: content['categories'].pop(), 'classes without a category'),
        (lambda content: content.pop('images'), "it has no list 'images'"),
    ],
)
def test_wrong_annotations(change, expected, detection, check):
    edit_json(detection.data / 'train.json', change)
    result = check(detection.config)
    assert result.code == 1, result.errors
    assert expected in result
    assert result.table[1][-1] == '0'


def test_harmless_annotations(detection, check):
    """A box that mmdet leaves out, as the real data have, and rounding at the border."""
    edit_json(detection.data / 'train.json', annotation(bbox=[18, 8, 14.6, 0.0]))
    result = check(detection.config, '--fast')
    assert result.code == 0, result.lines
    assert 'note: train: 1 boxes less than a pixel' in result


def test_annotations_that_are_no_json(detection, check):
    (detection.data / 'train.json').write_text('{')
    result = check(detection.config)
    assert result.code == 1
    assert f'ann_file {detection.data / "train.json"}' in result


@pytest.mark.parametrize(
    ('labels', 'expected'),
    [
        (np.full((SIZE, SIZE), 2, np.uint8), 'values without a class: 2'),
        (np.zeros((SIZE, SIZE + 1), np.uint8), f'({SIZE + 1}, {SIZE}), its image ({SIZE}, {SIZE})'),
        (np.zeros((SIZE, SIZE, 3), np.uint8), '3 channels'),
    ],
)
def test_wrong_label_map(labels, expected, segmentation, check):
    path = segmentation.data / 'labels' / 'train' / '2.png'
    save(np.full((SIZE, SIZE), 255, np.uint8), path)  # ignored
    assert check(segmentation.config).code == 0
    save(labels, path)
    result = check(segmentation.config)
    assert result.code == 1
    assert f'{path}: {expected}' in result
    assert check(segmentation.config, '--fast').code == 0


def test_exif_rotation(segmentation, check):
    exif = Image.Exif()
    exif[0x112] = 6
    path = segmentation.data / 'images' / 'train' / '2.jpg'
    Image.new('RGB', (20, SIZE)).save(path, exif=exif)
    save(np.zeros((20, SIZE), np.uint8), segmentation.data / 'labels' / 'train' / '2.png')
    assert check(segmentation.config).code == 0


def test_out_lists_all(classification, check, tmp_path):
    for path in (classification.data / 'train').rglob('*.png'):
        path.write_bytes(b'no image')
    out = tmp_path / 'problems.txt'
    result = check(classification.config, '--out', out)
    assert result.code == 1
    assert '    ... and 3 more' in result
    lines = out.read_text().splitlines()
    assert len(lines) == 8
    assert all(line.startswith('train: unreadable files: ') for line in lines)
    assert_one_line(check(classification.config, '--out', out), '--out', 'problems.txt exists')
    assert out.read_text().splitlines() == lines


# Mistakes


@pytest.mark.parametrize(
    ('name', 'folder', 'expected'),
    [
        ('classification', 'val', 'val, with one folder per class; put or link the data there'),
        ('detection', 'train.json', 'dataset.dataset.ann_file: no such file'),
        ('segmentation', 'labels/train', 'data_prefix.seg_map_path: no such folder'),
        ('segmentation', '.', 'train_dataloader.dataset.data_root: no such folder'),
    ],
)
def test_missing_folder(name, folder, expected, check, tmp_path):
    task = make_task(name, tmp_path)
    (task.data / folder).rename(tmp_path / 'elsewhere')
    assert_one_line(check(task.config), expected, str(task.data / folder), '--cfg-options')


def test_images_without_class_folders(classification, check):
    val = classification.data / 'val'
    for path in list(val.rglob('*.png')):
        path.rename(val / path.name)
    shutil.rmtree(val / 'a')
    shutil.rmtree(val / 'b')
    assert_one_line(check(classification.config), f'{val} has no folders, expected one per class')


def test_wrong_class_count(detection, check):
    result = check(
        detection.config, '--cfg-options', 'model.roi_head.bbox_head.num_classes=80'
    )  # fmt: skip
    assert_one_line(result, 'bbox_head.num_classes is 80', 'dataset has 2 classes')


def test_other_mistakes(classification, check, monkeypatch, tmp_path):
    config = classification.config
    assert_one_line(check(tmp_path / 'none.py'), 'no such file', 'none.py')
    assert_one_line(check(config, '--out', tmp_path / 'no' / 'a.txt'), '--out: no such folder')
    missing = check(config, '--split', 'test', '--cfg-options', 'test_dataloader=None')
    assert_one_line(missing, 'test_dataloader is not set')
    monkeypatch.setattr(config_module.importlib.util, 'find_spec', lambda name: None)
    assert_one_line(check(config), 'mmpretrain', 'not installed', 'pip install')


def test_default_workers_without_affinity(monkeypatch):
    """macOS and Windows cannot say which CPUs a process may use."""
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 5)
    assert check_dataset.parse_args(['config.py']).workers == 5


def test_interrupt(classification, check, monkeypatch):
    def interrupted(**kwargs: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sample_files, 'tqdm', interrupted)
    # A background job of a shell ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = check(classification.config, workers=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.code == 130
    assert result.errors[-1] == 'interrupted'
    assert not any('Traceback' in line for line in result.errors)
    assert not multiprocessing.active_children()

"""Errors of reading and writing during a run name the file, and nothing else is read."""

import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import BaseDataset, Compose
from PIL import Image
from tiny_tasks import Task, make_task

from dat_pp.engine.errors import RunError
from dat_pp.engine.file_errors import name_files

opened: Counter | None = None


@pytest.fixture
def opens():
    """How often each file is opened in this process."""
    global opened
    if opened is None:
        sys.addaudithook(_count)  # there is no way to remove it
    opened = Counter()
    return opened


def _count(event: str, args: tuple) -> None:
    if event == 'open' and isinstance(args[0], str | Path):
        opened[str(args[0])] += 1


def opened_data(task: Task, opens: Counter) -> dict[str, int]:
    """The samples' files that were opened."""
    return {
        path: count
        for path, count in opens.items()
        if path.startswith(str(task.data)) and path.endswith(('.png', '.jpg'))
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'file', 'content', 'workers'),
    [
        ('classification', 'train/a/2.png', b'not an image', 1),
        ('segmentation', 'images/train/2.jpg', b'', 0),
        ('segmentation', 'labels/train/2.png', b'not an image', 1),
        ('detection', 'train/2.png', b'not an image', 0),
    ],
)
def test_unreadable_file(name, file, content, workers, run, opens, tmp_path):
    task = make_task(name, tmp_path)
    path = task.data / file
    path.write_bytes(content)
    opens.clear()
    outcome = run(
        'train', task.config, '--work-dir', task.work_dir,
        '--cfg-options', f'train_dataloader.num_workers={workers}',
    )  # fmt: skip
    assert outcome.code == 2
    assert outcome.errors[-1].startswith(f'error: data: cannot read {path}: ')
    assert len(outcome.errors) == 1
    assert not task.checkpoint.exists()
    # Up to the batch with the broken file, each file was opened once.
    assert all(count == 1 for count in opened_data(task, opens).values())
    assert len(opened_data(task, opens)) <= 8


def test_truncated_label_map(segmentation, run):
    path = segmentation.data / 'labels' / 'train' / '5.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (256, 256), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    outcome = run('train', segmentation.config, '--work-dir', segmentation.work_dir)
    assert outcome.code == 2
    assert outcome.errors[-1].startswith(f'error: data: cannot read {path}: ')


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
@pytest.mark.parametrize('runner', ['Runner', 'FlexibleRunner'])
def test_full_disk(runner, classification, run, opens):
    """A checkpoint that does not fit on the disk is named, and the data is left alone."""
    task = classification
    task.work_dir.mkdir()
    task.checkpoint.symlink_to('/dev/full')
    opens.clear()
    outcome = run(
        'train', task.config, '--work-dir', task.work_dir, '--no-validate',
        '--cfg-options', f'runner_type={runner}',
    )  # fmt: skip
    assert outcome.code == 2
    assert outcome.errors == [f'error: cannot write {task.checkpoint}: No space left on device']
    assert set(opened_data(task, opens).values()) == {1}
    assert len(opened_data(task, opens)) == 8


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_full_disk_elsewhere(trained, run, tmp_path):
    out = tmp_path / 'out.pkl'
    out.symlink_to('/dev/full')
    work_dir = tmp_path / 'work'
    outcome = run('test', trained.config, trained.checkpoint, '--work-dir', work_dir, '--out', out)
    assert outcome.code == 2
    assert outcome.errors == [
        f'error: cannot write a file under {work_dir}: No space left on device'
    ]


# The transforms


class LoadNothing:
    with_seg = True

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, results: dict) -> dict:
        raise self.error

    def __repr__(self) -> str:
        return 'LoadNothing()'


class LoadAnnotations(LoadNothing):
    pass


class Wrapper:
    """Holds transforms as mmcv's RandomChoice or TestTimeAug does."""

    def __init__(self, *transforms: object) -> None:
        self.transforms = [Compose(list(transforms))]

    def __call__(self, results: dict) -> dict:
        return self.transforms[0](results)


class Dataset(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(img_path='image.jpg', seg_map_path='labels.png')]


@pytest.mark.parametrize(
    ('transform', 'expected'),
    [
        (LoadNothing(ValueError('no image')), 'data: cannot read image.jpg: no image'),
        (LoadAnnotations(OSError(5, 'I/O error')), 'data: cannot read labels.png: I/O error'),
        (Wrapper(LoadAnnotations(SyntaxError('broken PNG'))), 'labels.png: broken PNG'),
    ],
)
def test_transforms_name_the_file(transform, expected):
    dataset = Dataset(pipeline=[transform])
    name_files(dataset)
    name_files(dataset)  # before every validation
    for each in (dataset, pickle.loads(pickle.dumps(dataset))):  # as workers get it
        with pytest.raises(RunError) as raised:
            each[0]
        assert str(raised.value).endswith(expected)


def test_annotations_without_a_label_map():
    transform = LoadAnnotations(ValueError('no polygon'))
    transform.with_seg = False
    dataset = Dataset(pipeline=[transform])
    name_files(dataset)
    with pytest.raises(RunError, match=r'cannot read the annotations of image\.jpg: no polygon'):
        dataset[0]


def test_mistakes_in_a_config_keep_their_traceback():
    dataset = Dataset(pipeline=[LoadNothing(KeyError('img_path'))])
    name_files(dataset)
    with pytest.raises(KeyError):
        dataset[0]
    assert repr(dataset.pipeline.transforms[0]) == 'LoadNothing()'

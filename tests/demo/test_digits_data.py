"""The digits datasets: their content, the same every time, and that MMLab reads them."""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from pycocotools.coco import COCO

from demo.digits import data as digits

ROOT = Path(__file__).parents[2]


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()
    }


def scene_digits(split: str) -> set[int]:
    """Indices of the digits that a split's scenes are drawn from, as `draw_scene` gets them."""
    seen = set()
    inks, labels = digits.load_digits()
    numbers = {ink.tobytes(): number for number, ink in enumerate(inks)}

    def spy(photos, chosen, labels, rng):
        seen.update(numbers[ink.tobytes()] for ink in chosen)

    original = digits.draw_scene
    digits.draw_scene = spy
    try:
        digits.make_scenes([], digits.split_digits(labels, 0)[split], inks, labels, 900, [0, 0])
    finally:
        digits.draw_scene = original
    return seen


def test_no_digit_is_in_both_splits(data_root):
    _, labels = digits.load_digits()
    split = digits.split_digits(labels, 0)
    assert sorted(np.concatenate([split['train'], split['val']])) == list(range(1797))
    for digit in range(10):
        share = (labels[split['val']] == digit).sum() / (labels == digit).sum()
        assert share == pytest.approx(0.2, abs=0.01)
    names = {
        part: {path.stem[:4] for path in (data_root / 'imagenet' / part).rglob('*.png')}
        for part in ('train', 'val')
    }
    assert len(names['train']) + len(names['val']) == 1797
    assert not names['train'] & names['val']
    assert scene_digits('train') == set(split['train'])
    assert scene_digits('val') == set(split['val'])


def test_no_part_of_a_photograph_is_in_both_splits():
    from sklearn.datasets import load_sample_images

    photos = digits.split_photos()
    for whole, train, val in zip(load_sample_images().images, photos['train'], photos['val']):
        np.testing.assert_array_equal(np.concatenate([train, val])[..., ::-1], whole)


def test_same_seed_same_bytes_other_seed_other_digits(data_root, scenes, tmp_path):
    digits.convert(tmp_path / 'again', **scenes)
    assert snapshot(tmp_path / 'again') == snapshot(data_root)
    _, labels = digits.load_digits()
    first, other = (set(digits.split_digits(labels, seed)['val']) for seed in (0, 1))
    assert len(first & other) < len(first) / 2


def test_imagenet_folder_shows_the_digits(data_root):
    inks, labels = digits.load_digits()
    for split in ('train', 'val'):
        listed = (data_root / 'imagenet' / 'meta' / f'{split}.txt').read_text().split('\n')[:-1]
        files = {
            str(path.relative_to(data_root / 'imagenet' / split))
            for path in (data_root / 'imagenet' / split).rglob('*.png')
        }
        assert {line.split()[0] for line in listed} == files
        drawn = {line for line in listed if '_drawn' in line}
        copies = digits.DRAWN_COPIES if split == 'train' else 0
        assert len(drawn) == copies * (len(listed) - len(drawn))
        for line in [line for line in listed if line not in drawn][::20]:
            name, label = line.split()
            number = int(Path(name).stem)
            assert int(label) == labels[number] == int(Path(name).parent.name)
            image = cv2.imread(str(data_root / 'imagenet' / split / name), cv2.IMREAD_GRAYSCALE)
            small = cv2.resize(image, (12, 12), interpolation=cv2.INTER_AREA)[2:-2, 2:-2] / 255
            assert np.corrcoef(small.ravel(), inks[number].ravel())[0, 1] > 0.95


@pytest.mark.parametrize('split', ['train', 'val'])
def test_masks_boxes_and_label_maps_agree(data_root, scenes, split):
    coco = COCO(str(data_root / 'coco' / 'annotations' / f'instances_{split}.json'))
    assert len(coco.imgs) == scenes[f'{split}_scenes']
    assert [category['name'] for category in coco.cats.values()] == list('0123456789')
    ade = data_root / 'ade20k'
    for number, record in coco.imgs.items():
        image = cv2.imread(str(data_root / 'coco' / split / record['file_name']))
        assert image.shape == (record['height'], record['width'], 3)
        folder = digits.SPLITS[split]
        stem = Path(record['file_name']).stem
        same = ade / 'images' / folder / f'{stem}.jpg'
        assert same.read_bytes() == (data_root / 'coco' / split / record['file_name']).read_bytes()
        expected = cv2.imread(str(ade / 'annotations' / folder / f'{stem}.png'), -1)
        painted = np.zeros(image.shape[:2], np.uint8)
        instances = coco.imgToAnns[number]
        assert instances
        for instance in instances:
            mask = coco.annToMask(instance).astype(bool)
            assert not painted[mask].any(), 'masks overlap'
            painted[mask] = instance['category_id']
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert instance['bbox'] == box
            assert instance['area'] == mask.sum()
        np.testing.assert_array_equal(painted, expected)


def test_digits_stand_out(data_root):
    """A digit is lighter than what surrounds it, some by little and some by much."""
    coco = COCO(str(data_root / 'coco' / 'annotations' / 'instances_train.json'))
    steps = []
    for instance in coco.anns.values():
        record = coco.imgs[instance['image_id']]
        image = cv2.imread(str(data_root / 'coco' / 'train' / record['file_name']), 0).astype(float)
        mask = coco.annToMask(instance)
        ring = cv2.dilate(mask, np.ones((9, 9))) - cv2.dilate(mask, np.ones((5, 5)))
        steps.append(image[mask > 0].mean() - image[ring > 0].mean())
    assert np.median(steps) > 60
    assert np.mean(np.array(steps) > 30) > 0.95
    assert max(steps) - min(steps) > 60


@pytest.mark.parametrize(
    ('scope', 'config', 'length', 'keys'),
    [
        (
            'mmpretrain',
            dict(type='CustomDataset', data_root='imagenet', data_prefix='val'),
            None,
            ['img_path', 'gt_label'],
        ),
        (
            'mmpretrain',
            dict(
                type='ImageNet',
                data_root='imagenet',
                split='val',
                metainfo=dict(classes=digits.CLASSES),
            ),
            None,
            ['img_path', 'gt_label'],
        ),
        (
            'mmpretrain',
            dict(
                type='CustomDataset',
                data_root='imagenet',
                data_prefix='val',
                ann_file='meta/val.txt',
            ),
            None,
            ['img_path', 'gt_label'],
        ),
        (
            'mmdet',
            dict(
                type='CocoDataset',
                data_root='coco',
                data_prefix=dict(img='val/'),
                ann_file='annotations/instances_val.json',
                metainfo=dict(classes=digits.CLASSES),
            ),
            6,
            ['img_path', 'instances'],
        ),
        (
            'mmseg',
            dict(
                type='BaseSegDataset',
                data_root='ade20k',
                data_prefix=dict(
                    img_path='images/validation', seg_map_path='annotations/validation'
                ),
                metainfo=dict(classes=('background', *digits.CLASSES)),
            ),
            6,
            ['img_path', 'seg_map_path'],
        ),
    ],
)
def test_mmlab_reads_it(data_root, scope, config, length, keys):
    pytest.importorskip(scope)
    init_default_scope(scope)
    dataset = DATASETS.build({**config, 'data_root': str(data_root / config['data_root'])})
    wanted = length or len(list((data_root / 'imagenet' / 'val').rglob('*.png')))
    assert len(dataset) == wanted
    for number in range(wanted):
        info = dataset.get_data_info(number)
        assert set(keys) <= set(info)
        assert Path(info['img_path']).is_file()
        if 'gt_label' in info:
            assert int(Path(info['img_path']).parent.name) == info['gt_label']
        for instance in info.get('instances', []):
            assert instance['mask']['counts']
            assert 0 <= instance['bbox_label'] < 10


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'demo.digits.data', *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_is_quiet_about_the_same_data_and_refuses_anything_else(data_root, scenes, tmp_path):
    before = snapshot(data_root)
    assert not digits.convert(data_root, **scenes)
    with pytest.raises(ValueError, match='seed: 0, not 7'):
        digits.convert(data_root, seed=7, **scenes)
    assert snapshot(data_root) == before

    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('keep')
    result = run(tmp_path / 'mine')
    assert result.returncode != 0
    assert result.stderr.count('\n') == 1
    assert 'mine' in result.stderr
    assert [path.name for path in (tmp_path / 'mine').iterdir()] == ['thesis.txt']
    (tmp_path / 'file').write_text('keep')
    assert run(tmp_path / 'file').stderr.count('\n') == 1


def test_a_failure_leaves_nothing(scenes, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(digits, 'write_scenes', fail)
    with pytest.raises(OSError, match='disk full'):
        digits.convert(tmp_path / 'new', **scenes)
    assert not list(tmp_path.iterdir())


def test_digest_covers_names_and_contents(data_root, tmp_path):
    shutil.copytree(data_root, tmp_path / 'copy')
    expected = digits.digest(data_root)
    assert digits.digest(tmp_path / 'copy') == expected
    image = tmp_path / 'copy/coco/val/val_00000.jpg'
    image.rename(image.with_name('other.jpg'))
    renamed = digits.digest(tmp_path / 'copy')
    image.with_name('other.jpg').write_bytes(b'')
    assert len({expected, renamed, digits.digest(tmp_path / 'copy')}) == 3

"""The digits datasets: their content, the same every time, and that MMLab reads them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from pycocotools.coco import COCO
from sklearn.datasets import load_digits, load_sample_images

from demo.digits import data as digits


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()
    }


def test_no_digit_is_in_both_splits(data_root):
    target = load_digits().target
    parts = digits.load_parts()
    train, val = parts['train'].numbers, parts['val'].numbers
    assert sorted([*train, *val]) == list(range(1797))
    for part in parts.values():
        np.testing.assert_array_equal(part.labels, target[part.numbers])
    for digit in range(10):
        assert (target[val] == digit).sum() / (target == digit).sum() == pytest.approx(
            0.2, abs=0.01
        )
    for split, part in parts.items():
        files = (data_root / 'imagenet' / split).rglob('*.png')
        assert {int(path.stem[:4]) for path in files} == set(part.numbers)


def test_scenes_show_all_digits_of_their_split(monkeypatch):
    def spy(part, chosen, size, heights, rng):
        return [part.inks[index].tobytes() for index in chosen]

    monkeypatch.setattr(digits, 'draw_scene', spy)
    for part in digits.load_parts().values():
        scenes = digits.make_scenes(part, 900, np.random.default_rng(0))
        assert {ink for scene in scenes for ink in scene} == {ink.tobytes() for ink in part.inks}


def test_no_part_of_a_photograph_is_in_both_splits():
    parts = digits.load_parts()
    photos = load_sample_images().images
    for whole, train, val in zip(photos, parts['train'].photos, parts['val'].photos, strict=True):
        np.testing.assert_array_equal(np.concatenate([train, val])[..., ::-1], whole)


def test_same_seed_same_bytes_other_seed_other_digits(data_root, scenes, tmp_path):
    digits.convert(tmp_path / 'again', scenes)
    assert snapshot(tmp_path / 'again') == snapshot(data_root)
    first, other = (set(digits.load_parts(seed)['val'].numbers) for seed in (0, 1))
    assert len(first & other) < len(first) / 2


@pytest.mark.parametrize('split', ['train', 'val'])
def test_imagenet_folder_shows_the_digits(data_root, split):
    part = digits.load_parts()[split]
    images = {path.stem: path for path in (data_root / 'imagenet' / split).rglob('*.png')}
    drawn = {stem for stem in images if stem.endswith('_drawn')}
    assert len(drawn) == (len(part.numbers) if split == 'train' else 0)
    for number, ink, label in list(zip(part.numbers, part.inks, part.labels))[::20]:
        path = images[f'{number:04d}']
        assert path.parent.name == str(label)
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        small = cv2.resize(image, (12, 12), interpolation=cv2.INTER_AREA)[2:-2, 2:-2] / 255
        assert np.corrcoef(small.ravel(), ink.ravel())[0, 1] > 0.95


@pytest.mark.parametrize('split', ['train', 'val'])
def test_masks_boxes_and_label_maps_agree(data_root, scenes, split):
    coco = COCO(str(data_root / 'coco' / 'annotations' / f'instances_{split}.json'))
    assert len(coco.imgs) == scenes[split]
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


def test_written_once_replaced_when_outdated_and_nothing_else_is_touched(
    scenes, tmp_path, monkeypatch
):
    monkeypatch.setattr(digits, 'write_imagenet', lambda *_: None)  # takes longest
    root = tmp_path / 'digits'
    assert digits.convert(root, scenes)
    before = snapshot(root)
    assert not digits.convert(root, scenes)
    assert snapshot(root) == before
    (root / 'digits.json').write_text('{"version": 1}')
    assert digits.convert(root, scenes)
    assert snapshot(root) == before

    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('keep')
    with pytest.raises(ValueError, match='mine exists and is no digits dataset'):
        digits.convert(tmp_path / 'mine', scenes)
    assert [path.name for path in (tmp_path / 'mine').iterdir()] == ['thesis.txt']


def test_a_failure_leaves_nothing(scenes, tmp_path, monkeypatch):
    def fail(folder, *_):
        folder.mkdir(parents=True)
        raise OSError('disk full')

    monkeypatch.setattr(digits, 'write_imagenet', fail)
    with pytest.raises(OSError, match='disk full'):
        digits.convert(tmp_path / 'new', scenes)
    assert not list(tmp_path.iterdir())

"""The figures: each shows ground truth and prediction as they are."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib.colors
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from demo.digits import figures

ROOT = Path(__file__).parents[2]


def classified(data_root: Path, mistakes: int) -> list[dict]:
    """All validation digits as predicted correctly, except the last ones, which are 9s."""
    samples = []
    for path in sorted((data_root / 'imagenet' / 'val').rglob('*.png')):
        label = int(path.parent.name)
        truth = torch.tensor([label])
        scores = torch.full((10,), 0.87)
        samples.append(
            dict(img_path=str(path), gt_label=truth, pred_label=truth, pred_score=scores)
        )
    for sample in samples[len(samples) - mistakes :]:
        sample['pred_label'] = torch.tensor([0])
    return samples


def shown(axes: Axes) -> np.ndarray:
    """The image of a panel."""
    (image,) = axes.images
    return np.asarray(image.get_array())


def test_mistakes_come_first_and_in_red(data_root):
    samples = classified(data_root, mistakes=2)
    figure = figures.draw_classifications(data_root, samples)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ['0 not 9', '0 not 9', '0  87%']
    colors = [axes.title.get_color() for axes in figure.axes]
    assert colors == ['red', 'red', *['green'] * 38]
    assert (
        figure.get_suptitle() == f'{len(samples) - 2} of {len(samples)} validation digits correct'
    )
    image = cv2.imread(samples[-2]['img_path'], cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(shown(figure.axes[0]), image)


@pytest.mark.parametrize(('width', 'count'), [(80, 8), (35, 3), (4, 1)])
def test_digits_in_a_terminal(data_root, width, count):
    samples = classified(data_root, mistakes=2)
    text = figures.digits_as_text(data_root, samples, width)
    lines = text.plain.split('\n')
    assert len(lines) == 5
    assert all(len(line) == 10 * count for line in lines)
    assert lines[-1].split()[:3] == ['0', 'not', '9']
    # A mistake and correct ones; the upper half of the first 0 has ink around an empty middle.
    assert lines[-1].count('87%') == count - 1
    if count > 1:
        zero = [line[10:18] for line in lines[:4]]
        assert zero[1].strip().replace(' ', '') != zero[1].strip()


@pytest.mark.slow
def test_attention_of_the_classifier(data_root, tmp_path):
    """In a fresh process, with random weights."""
    get_model = pytest.importorskip('mmpretrain').get_model
    config = str(ROOT / 'configs' / 'digits' / 'classification.py')
    torch.save(get_model(config).state_dict(), tmp_path / 'model.pth')
    samples = classified(data_root, mistakes=2)
    (tmp_path / 'predictions.pkl').write_bytes(pickle.dumps(samples))
    names = [str(tmp_path / name) for name in ('model.pth', 'predictions.pkl', 'attention.png')]
    command = [sys.executable, '-m', 'demo.digits.attention', config, *names]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    height, width, _ = cv2.imread(names[-1]).shape
    assert width > 2 * height  # two rows of four digits, each beside its heat map


def test_a_perfect_segmentation_looks_like_the_ground_truth(data_root):
    samples = []
    for path in sorted((data_root / 'ade20k' / 'annotations' / 'validation').glob('*')):
        labels = torch.from_numpy(cv2.imread(str(path), -1).astype(np.int64))[None]
        samples.append(dict(img_path=f'{path.stem}.jpg', pred_sem_seg=dict(data=labels)))
    image, truth, prediction, *_ = figures.draw_segmentations(data_root, samples).axes
    np.testing.assert_array_equal(shown(prediction), shown(truth))
    assert shown(truth).max() > 0
    file = cv2.imread(str(data_root / 'ade20k/images/validation/val_00000.jpg'))
    np.testing.assert_array_equal(shown(image), file[..., ::-1])


def detected(data_root: Path, score: float) -> list[dict]:
    """The ground truth as if it had been detected with this score."""
    coco = json.loads((data_root / 'coco/annotations/instances_val.json').read_text())
    samples = []
    for image in coco['images']:
        instances = [i for i in coco['annotations'] if i['image_id'] == image['id']]
        boxes = torch.tensor([i['bbox'] for i in instances])
        boxes[:, 2:] += boxes[:, :2]
        found = dict(
            bboxes=boxes,
            labels=torch.tensor([i['category_id'] - 1 for i in instances]),
            scores=torch.full((len(instances),), score),
            masks=[i['segmentation'] for i in instances],
        )
        samples.append(dict(img_id=image['id'], img_path=image['file_name'], pred_instances=found))
    return samples


def boxes(axes: Axes) -> list[tuple]:
    """Position, size and color of every box of a panel."""
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [
        (*p.get_xy(), p.get_width(), p.get_height(), matplotlib.colors.to_hex(p.get_edgecolor()))
        for p in patches
    ]


def test_a_perfect_detection_looks_like_the_ground_truth(data_root):
    truth, prediction, *_ = figures.draw_detections(data_root, detected(data_root, 0.9)).axes
    assert boxes(prediction) == boxes(truth) != []
    np.testing.assert_array_equal(shown(prediction), shown(truth))
    classes = [text.get_text() for text in truth.texts]
    assert [text.get_text() for text in prediction.texts] == [f'{name} 90%' for name in classes]


def test_detections_with_low_scores_are_not_drawn(data_root):
    truth, prediction, *_ = figures.draw_detections(data_root, detected(data_root, 0.4)).axes
    image = cv2.imread(str(data_root / 'coco/val/val_00000.jpg'))[..., ::-1]
    np.testing.assert_array_equal(shown(prediction), image / 255)
    assert not boxes(prediction)
    assert not np.array_equal(shown(truth), image / 255)

"""The figures: each shows ground truth and prediction as they are."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as rle

from demo.digits import data as digits
from demo.digits import figures

SIDE = figures.ZOOM * digits.SCENE_SIZE


def draw(task: str, data_root: Path, predictions: list[dict], folder: Path) -> np.ndarray:
    """The figure below its titles."""
    (folder / 'predictions.pkl').write_bytes(pickle.dumps(predictions))
    figures.DRAW[task](data_root, folder / 'predictions.pkl', folder / 'figure.png')
    return cv2.imread(str(folder / 'figure.png'))[figures.TITLE :]


def cells(figure: np.ndarray, side: int) -> list[np.ndarray]:
    """The first row of images."""
    step = side + figures.GAP
    return [figure[:side, left : left + side] for left in range(0, figure.shape[1], step)]


def test_mistakes_come_first_and_in_red(data_root, tmp_path):
    paths = sorted((data_root / 'imagenet' / 'val').rglob('*.png'))
    samples = [
        dict(
            img_path=str(path),
            gt_label=torch.tensor([int(path.parent.name)]),
            pred_label=torch.tensor([int(path.parent.name)]),
            pred_score=torch.full((10,), 0.1),
        )
        for path in paths
    ]
    samples[-1]['pred_label'] = torch.tensor([0])
    row = cells(draw('classification', data_root, samples, tmp_path), 2 * digits.IMAGE_SIZE)
    red, green = figures.WRONG[::-1], figures.RIGHT[::-1]
    assert len(row) == 10
    assert [(np.abs(cell.astype(int) - red).max(-1) < 60).any() for cell in row] == [
        True,
        *[False] * 9,
    ]
    assert all((np.abs(cell.astype(int) - green).max(-1) < 60).any() for cell in row[1:])


def test_a_perfect_segmentation_looks_like_the_ground_truth(data_root, tmp_path):
    samples = []
    for path in sorted((data_root / 'ade20k' / 'annotations' / 'validation').glob('*')):
        labels = torch.from_numpy(cv2.imread(str(path), -1).astype(np.int64))[None]
        samples.append(dict(img_path=f'{path.stem}.jpg', pred_sem_seg=dict(data=labels)))
    image, truth, prediction, *_ = cells(draw('upernet', data_root, samples, tmp_path), SIDE)
    assert np.array_equal(prediction, truth)
    assert not np.array_equal(prediction, image)


def detections(data_root: Path, score: float) -> list[dict]:
    """The ground truth as if it had been detected with this score."""
    coco = json.loads((data_root / 'coco/annotations/instances_val.json').read_text())
    samples = []
    for image in coco['images']:
        instances = [i for i in coco['annotations'] if i['image_id'] == image['id']]
        boxes = torch.tensor([i['bbox'] for i in instances], dtype=torch.float)
        boxes[:, 2:] += boxes[:, :2]
        found = dict(
            bboxes=boxes,
            labels=torch.tensor([i['category_id'] - 1 for i in instances]),
            scores=torch.full((len(instances),), score),
            masks=[
                rle.frPyObjects(i['segmentation'], *i['segmentation']['size']) for i in instances
            ],
        )
        samples.append(dict(img_id=image['id'], img_path=image['file_name'], pred_instances=found))
    return samples


def test_a_perfect_detection_looks_like_the_ground_truth(data_root, tmp_path):
    truth, prediction, *_ = cells(
        draw('mask-rcnn', data_root, detections(data_root, 1.0), tmp_path), SIDE
    )
    # They differ in the scores written beside the classes.
    assert (np.abs(truth.astype(int) - prediction).max(-1) > 30).mean() < 0.2


def test_detections_with_low_scores_are_not_drawn(data_root, tmp_path):
    figure = draw('mask-rcnn', data_root, detections(data_root, 0.4), tmp_path)
    image = cv2.imread(str(data_root / 'coco/val/val_00000.jpg'))
    image = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    truth, prediction, *_ = cells(figure, SIDE)
    assert np.array_equal(prediction, image)
    assert not np.array_equal(truth, image)

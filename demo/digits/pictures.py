"""Contact sheets of what the digits models found, drawn by MMLab's visualizers."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

CLASSES = tuple('0123456789')
# Background, then one colour a digit.
PALETTE = [
    (0, 0, 0),
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
]
ZOOM = 2  # scenes are small
SCORE = 0.5  # predictions below are not drawn
GAP = 6


def draw_detections(data_root: Path, predictions: Path, path: Path, count: int = 8) -> None:
    """Boxes and masks, two scenes a row: truth beside prediction.

    Args:
        data_root: The folder that demo/digits/data.py wrote.
        predictions: What tools/test.py --out wrote for the detector.
        path: The PNG to write.
        count: How many of the first validation scenes to show.
    """
    truth = COCO(str(data_root / 'coco' / 'annotations' / 'instances_val.json'))
    visualizer = DetLocalVisualizer(line_width=1, alpha=0.6)
    visualizer.dataset_meta = dict(classes=CLASSES, palette=PALETTE[1:])
    pictures = []
    for prediction in _load(predictions)[:count]:
        image = _read(data_root / 'coco' / 'val' / Path(prediction['img_path']).name)
        instances = truth.imgToAnns[prediction['img_id']]
        boxes = np.array([instance['bbox'] for instance in instances], float)
        boxes[:, 2:] += boxes[:, :2]
        found = prediction['pred_instances']
        kept = [i for i, score in enumerate(found['scores']) if score >= SCORE]
        sample = DetDataSample(
            gt_instances=_instances(
                image,
                boxes,
                [instance['category_id'] - 1 for instance in instances],
                [truth.annToMask(instance) for instance in instances],
            ),
            pred_instances=_instances(
                image,
                found['bboxes'][kept].numpy(),
                found['labels'][kept],
                [run_lengths.decode(found['masks'][i]) for i in kept],
                scores=found['scores'][kept],
            ),
        )
        visualizer.add_datasample('', image, sample, pred_score_thr=0)
        drawn = visualizer.get_image()
        pictures += [drawn[:, : image.shape[1]], drawn[:, image.shape[1] :]]
    _save_sheet(pictures, ['truth', 'prediction'] * 2, path)


def draw_segmentations(data_root: Path, predictions: Path, path: Path, count: int = 8) -> None:
    """Label maps, two scenes a row: image, prediction, truth. Arguments as `draw_detections`."""
    visualizer = SegLocalVisualizer(alpha=0.8)
    visualizer.dataset_meta = dict(classes=('background', *CLASSES), palette=PALETTE)
    folder = data_root / 'ade20k'
    pictures = []
    for prediction in _load(predictions)[:count]:
        name = Path(prediction['img_path'])
        image = _read(folder / 'images' / 'validation' / name.name)
        truth = cv2.imread(str(folder / 'annotations' / 'validation' / f'{name.stem}.png'), -1)
        pictures.append(image)
        for labels in (prediction['pred_sem_seg']['data'][0].numpy(), truth):
            sample = SegDataSample(pred_sem_seg=_label_map(image, labels))
            visualizer.add_datasample('', image, sample, draw_gt=False, with_labels=False)
            pictures.append(visualizer.get_image())
    _save_sheet(pictures, ['image', 'prediction', 'truth'] * 2, path)


def _load(path: Path) -> list[dict]:
    with open(path, 'rb') as file:
        return pickle.load(file)


def _read(path: Path) -> np.ndarray:
    """An image, RGB, enlarged."""
    image = cv2.imread(str(path))[..., ::-1]
    return cv2.resize(image, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC)


def _enlarge_labels(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    return cv2.resize(labels.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def _instances(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: list[int],
    masks: list[np.ndarray],
    **others: torch.Tensor,
) -> InstanceData:
    masks = [_enlarge_labels(mask, image) for mask in masks]
    return InstanceData(
        bboxes=torch.as_tensor(boxes, dtype=torch.float).reshape(-1, 4) * ZOOM,
        labels=torch.as_tensor(labels, dtype=torch.long),
        masks=np.array(masks, bool).reshape(-1, *image.shape[:2]),
        **others,
    )


def _label_map(image: np.ndarray, labels: np.ndarray) -> PixelData:
    return PixelData(data=torch.from_numpy(_enlarge_labels(labels, image).astype(np.int64))[None])


def _save_sheet(pictures: list[np.ndarray], titles: list[str], path: Path) -> None:
    """Pictures (RGB, all of one size) in rows under titles."""
    height, width = pictures[0].shape[:2]
    columns = len(titles)
    rows = -(-len(pictures) // columns)
    sheet = np.full((24 + rows * (height + GAP), columns * (width + GAP), 3), 255, np.uint8)
    for column, title in enumerate(titles):
        cv2.putText(
            sheet,
            title,
            (column * (width + GAP) + 4, 17),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.5,
            (0, 0, 0),
            1,
            cv2.LINE_AA,
        )
    for number, picture in enumerate(pictures):
        top, left = 24 + number // columns * (height + GAP), number % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = picture
    if not cv2.imwrite(str(path), sheet[..., ::-1]):
        raise OSError(f'cannot write {path}')

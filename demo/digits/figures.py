"""Figures of what the digits models predict, drawn by MMLab's visualizers.

    python -m demo.digits.figures TASK PREDICTIONS.pkl FIGURE.png [DATA_ROOT]

TASK is classification, mask-rcnn or upernet; PREDICTIONS.pkl is what tools/test.py --out writes.
"""

import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData
from mmengine.visualization import Visualizer
from pycocotools import mask as rle
from pycocotools.coco import COCO

from .data import CLASSES

# Background, then one color per digit.
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
RIGHT, WRONG = (60, 180, 75), (230, 25, 75)
ZOOM = 2  # the images are small
SCORE = 0.5  # detections with lower scores are not drawn
GAP = 6
TITLE = 24


def draw_classifications(
    data_root: Path, predictions: Path, path: Path, columns: int = 10, rows: int = 4
) -> None:
    """Draw validation digits with the predicted class, the mistakes first and in red.

    Args:
        data_root: The folder that demo/digits/data.py wrote.
        predictions: What tools/test.py --out wrote for the classifier.
        path: The PNG to write.
        columns, rows: How many digits to show.
    """
    visualizer = Visualizer()
    samples = _load(predictions)
    wrong = [s for s in samples if int(s['pred_label']) != int(s['gt_label'])]
    right = [s for s in samples if int(s['pred_label']) == int(s['gt_label'])]
    # Evenly spaced: the files are sorted by class.
    shown = wrong[: columns * rows // 2]
    wanted = min(columns * rows - len(shown), len(right))
    shown += [right[i * len(right) // wanted] for i in range(wanted)]
    cells = []
    for sample in shown:
        name = Path(sample['img_path'])
        visualizer.set_image(
            _read(data_root / 'imagenet' / 'val' / name.parent.name / name.name, ZOOM)
        )
        label = int(sample['pred_label'])
        color = RIGHT if label == int(sample['gt_label']) else WRONG
        text = f'{CLASSES[label]}  {100 * float(torch.as_tensor(sample["pred_score"]).max()):.0f} %'
        visualizer.draw_texts(text, np.array([3, 2]), font_sizes=9, colors=color)
        cells.append(visualizer.get_image())
    titles = [f'{len(samples) - len(wrong)} of {len(samples)} correct; predicted class, score']
    _save_figure(cells, titles, columns, path)


def draw_detections(data_root: Path, predictions: Path, path: Path, count: int = 8) -> None:
    """Draw boxes and masks, two scenes per row: ground truth beside prediction.

    Args:
        data_root, predictions, path: See `draw_classifications`.
        count: How many of the first validation scenes to show.
    """
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer

    truth = COCO(str(data_root / 'coco' / 'annotations' / 'instances_val.json'))
    visualizer = DetLocalVisualizer(line_width=1, alpha=0.6)
    visualizer.dataset_meta = dict(classes=CLASSES, palette=PALETTE[1:])
    cells = []
    for prediction in _load(predictions)[:count]:
        image = _read(data_root / 'coco' / 'val' / Path(prediction['img_path']).name, ZOOM)
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
                [rle.decode(found['masks'][i]) for i in kept],
                scores=found['scores'][kept],
            ),
        )
        visualizer.add_datasample('', image, sample, pred_score_thr=0)
        drawn = visualizer.get_image()
        cells += [drawn[:, : image.shape[1]], drawn[:, image.shape[1] :]]
    _save_figure(cells, ['ground truth', 'prediction'] * 2, 4, path)


def draw_segmentations(data_root: Path, predictions: Path, path: Path, count: int = 8) -> None:
    """Draw label maps, two scenes per row: image, ground truth, prediction.

    Args:
        data_root, predictions, path, count: See `draw_detections`.
    """
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    visualizer = SegLocalVisualizer(alpha=0.8)
    visualizer.dataset_meta = dict(classes=('background', *CLASSES), palette=PALETTE)
    folder = data_root / 'ade20k'
    cells = []
    for prediction in _load(predictions)[:count]:
        name = Path(prediction['img_path'])
        image = _read(folder / 'images' / 'validation' / name.name, ZOOM)
        truth = _decode(
            folder / 'annotations' / 'validation' / f'{name.stem}.png', cv2.IMREAD_UNCHANGED
        )
        cells.append(image)
        for labels in (truth, prediction['pred_sem_seg']['data'][0].numpy()):
            enlarged = torch.from_numpy(_enlarge(labels, image).astype(np.int64))[None]
            sample = SegDataSample(pred_sem_seg=PixelData(data=enlarged))
            visualizer.add_datasample('', image, sample, draw_gt=False, with_labels=False)
            cells.append(visualizer.get_image())
    _save_figure(cells, ['image', 'ground truth', 'prediction'] * 2, 6, path)


def _load(path: Path) -> list[dict]:
    with open(path, 'rb') as file:
        return pickle.load(file)


def _decode(path: Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    image = cv2.imread(str(path), flags)
    if image is None:
        raise OSError(f'cannot read {path}')
    return image


def _read(path: Path, zoom: int) -> np.ndarray:
    """Read an image as RGB and enlarge it."""
    image = _decode(path)
    return cv2.resize(image[..., ::-1], None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)


def _enlarge(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    return cv2.resize(labels.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def _instances(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    masks: Sequence[np.ndarray],
    **others: torch.Tensor,
) -> InstanceData:
    """Boxes and masks of an image, enlarged like the image."""
    masks = [_enlarge(mask, image) for mask in masks]
    return InstanceData(
        bboxes=torch.as_tensor(boxes, dtype=torch.float).reshape(-1, 4) * ZOOM,
        labels=torch.as_tensor(labels, dtype=torch.long),
        masks=np.array(masks, bool).reshape(-1, *image.shape[:2]),
        **others,
    )


def _save_figure(cells: list[np.ndarray], titles: list[str], columns: int, path: Path) -> None:
    """Arrange RGB images of one size in rows, below evenly spaced titles."""
    height, width = (length + GAP for length in cells[0].shape[:2])
    rows = -(-len(cells) // columns)
    figure = np.full((TITLE + rows * height, columns * width, 3), 255, np.uint8)
    for number, title in enumerate(titles):
        left = number * columns * width // len(titles) + 4
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(figure, title, (left, 17), font, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    for number, cell in enumerate(cells):
        top, left = TITLE + number // columns * height, number % columns * width
        figure[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    if not cv2.imwrite(str(path), figure[..., ::-1]):
        raise OSError(f'cannot write {path}')


DRAW: dict[str, Callable[[Path, Path, Path], None]] = {
    'classification': draw_classifications,
    'mask-rcnn': draw_detections,
    'upernet': draw_segmentations,
}

if __name__ == '__main__':
    task, predictions, figure, *root = sys.argv[1:]
    DRAW[task](Path(*root or ['data/digits']), Path(predictions), Path(figure))

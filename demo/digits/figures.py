"""Figures of what the digits models predict, and a few digits as text."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from pycocotools import mask as rle
from rich.text import Text

from .data import CLASSES, MARGIN

COLORS = matplotlib.colormaps['tab10'](range(10))[:, :3]  # one per digit
WIDTH, INK = 10, 100  # of a digit in a terminal: columns, and luminance of a pixel that is set
SCORE = 0.5  # detections with lower scores are not drawn


def draw_classifications(data_root: Path, samples: list[dict], rows: int = 4) -> Figure:
    """Draw validation digits with predicted class and score, mistakes first and in red.

    Args:
        data_root: The folder that `demo.digits.data` wrote.
        samples: What `tools/test.py --out` wrote.
        rows: Rows of ten digits.
    """
    figure, axes = _grid(rows, 10, 0.8, 0.9)
    correct = sum(not _is_wrong(sample) for sample in samples)
    figure.suptitle(f'{correct} of {len(samples)} validation digits correct', fontsize=9)
    for axis, sample in zip(axes, choose(samples, len(axes), len(axes) // 2)):
        axis.imshow(_read_digit(data_root, sample), cmap='gray', vmin=0, vmax=255)
        color = 'red' if _is_wrong(sample) else 'green'
        axis.set_title(caption(sample), fontsize=8, color=color, pad=2)
    return figure


def draw_detections(data_root: Path, samples: list[dict], count: int = 8) -> Figure:
    """Draw boxes and masks, two scenes per row: ground truth beside prediction.

    Args:
        data_root, samples: See `draw_classifications`.
        count: How many of the first validation scenes to show.
    """
    truth = json.loads((data_root / 'coco' / 'annotations' / 'instances_val.json').read_text())
    figure, axes = _grid(count // 2, 4, 1.8, 1.8, ['ground truth', 'prediction'])
    for number, sample in enumerate(samples[:count]):
        image = read_image(data_root / 'coco' / 'val' / Path(sample['img_path']).name)
        annotations = [a for a in truth['annotations'] if a['image_id'] == sample['img_id']]
        _draw_instances(
            axes[2 * number],
            image,
            [a['bbox'] for a in annotations],
            [a['category_id'] - 1 for a in annotations],
            [rle.decode(a['segmentation']) for a in annotations],
        )
        found = sample['pred_instances']
        kept = [i for i, score in enumerate(found['scores']) if score >= SCORE]
        boxes = found['bboxes'][kept].numpy()
        boxes[:, 2:] -= boxes[:, :2]
        _draw_instances(
            axes[2 * number + 1],
            image,
            boxes,
            found['labels'][kept].tolist(),
            [rle.decode(found['masks'][i]) for i in kept],
            found['scores'][kept].tolist(),
        )
    return figure


def draw_segmentations(data_root: Path, samples: list[dict], count: int = 8) -> Figure:
    """Draw label maps, two scenes per row: image, ground truth, prediction.

    Args:
        data_root, samples, count: See `draw_detections`.
    """
    folder = data_root / 'ade20k'
    titles = ['image', 'ground truth', 'prediction']
    figure, axes = _grid(count // 2, 6, 1.3, 1.3, titles)
    colors = ListedColormap(np.vstack([np.zeros(3), COLORS]))
    for number, sample in enumerate(samples[:count]):
        stem = Path(sample['img_path']).stem
        truth = read_image(folder / 'annotations' / 'validation' / f'{stem}.png')
        image, *maps = axes[3 * number : 3 * number + 3]
        image.imshow(read_image(folder / 'images' / 'validation' / f'{stem}.jpg'))
        for axis, labels in zip(maps, (truth, sample['pred_sem_seg']['data'][0])):
            axis.imshow(labels, cmap=colors, vmin=0, vmax=len(CLASSES), interpolation='nearest')
    handles = [Patch(color=color, label=name) for color, name in zip(COLORS, CLASSES)]
    figure.legend(handles=handles, ncols=10, loc='outside lower center', fontsize=8, frameon=False)
    return figure


DRAW: dict[str, Callable[[Path, list[dict]], Figure]] = {
    'classification': draw_classifications,
    'mask-rcnn': draw_detections,
    'upernet': draw_segmentations,
}


def digits_as_text(data_root: Path, samples: list[dict], width: int) -> Text:
    """Draw a row of validation digits in block characters, with the predicted classes.

    Args:
        data_root, samples: See `draw_classifications`.
        width: Of the terminal, in characters.
    """
    lines = [Text() for _ in range(5)]
    for sample in choose(samples, max(1, width // WIDTH), 1):
        image = _read_digit(data_root, sample)
        ink = cv2.resize(image, (8 + 2 * MARGIN,) * 2, interpolation=cv2.INTER_AREA) > INK
        ink = ink[MARGIN:-MARGIN, MARGIN:-MARGIN]
        for line, upper, lower in zip(lines, ink[::2], ink[1::2]):
            line.append(''.join(' ▀▄█'[u + 2 * v] for u, v in zip(upper, lower)).ljust(WIDTH))
        style = 'bold red' if _is_wrong(sample) else 'green'
        lines[-1].append(caption(sample).center(8).ljust(WIDTH), style=style)
    return Text('\n').join(lines)


def choose(samples: list[dict], count: int, mistakes: int) -> list[dict]:
    """Choose samples: mistakes, at most that many, then correct ones of all classes."""
    wrong = [sample for sample in samples if _is_wrong(sample)][:mistakes]
    right = [sample for sample in samples if not _is_wrong(sample)]
    # Evenly spaced: the files are sorted by class.
    wanted = min(count - len(wrong), len(right))
    return wrong + [right[i * len(right) // wanted] for i in range(wanted)]


def _is_wrong(sample: dict) -> bool:
    return int(sample['pred_label']) != int(sample['gt_label'])


def _grid(
    rows: int, columns: int, width: float, height: float, titles: Sequence[str] = ()
) -> tuple[Figure, list[Axes]]:
    """Make a figure of axes without frames, of a size in inches each; `titles` repeat on top."""
    figure = Figure((columns * width, rows * height + 0.3), dpi=150, layout='constrained')
    axes = list(figure.subplots(rows, columns).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, title in zip(axes, list(titles) * columns):
        if axis in axes[:columns]:
            axis.set_title(title, fontsize=9)
    return figure, axes


def caption(sample: dict) -> str:
    """The predicted class, and its score or the true class."""
    label, truth = int(sample['pred_label']), int(sample['gt_label'])
    score = float(sample['pred_score'].max())
    return f'{label} not {truth}' if label != truth else f'{label}  {score:.0%}'


def read_image(path: Path) -> np.ndarray:
    """Read a label map as it is, or an image as RGB."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise OSError(f'cannot read {path}')
    return image[..., ::-1] if image.ndim == 3 else image


def _read_digit(data_root: Path, sample: dict) -> np.ndarray:
    """Read a validation digit as (H, W); the dataset may have moved since the test."""
    return read_image(data_root.joinpath('imagenet', 'val', *Path(sample['img_path']).parts[-2:]))


def _draw_instances(
    axis: Axes,
    image: np.ndarray,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    masks: Sequence[np.ndarray],
    scores: Sequence[float] = (),
) -> None:
    """Draw an image with its instances: boxes as (x, y, w, h), masks, class and score."""
    image = image / 255
    for label, mask in zip(labels, masks):
        image[mask > 0] = 0.3 * image[mask > 0] + 0.7 * COLORS[label]
    axis.imshow(image)
    for number, (label, (x, y, width, height)) in enumerate(zip(labels, boxes)):
        color = COLORS[label]
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, color=color))
        text = CLASSES[label] + (f' {scores[number]:.0%}' if scores else '')
        box = dict(color=color, pad=0.5, linewidth=0)
        axis.text(x, y, text, fontsize=6, color='white', verticalalignment='bottom', bbox=box)

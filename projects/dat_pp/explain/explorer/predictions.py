"""Predictions as the explorer shows them: classes, boxes and regions of an image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_SCORE = 0.3
"""Detections with lower scores are left out."""
MOST_CLASSES = 5
MOST_REGIONS = 254  # indices of regions are bytes


@dataclass(frozen=True)
class Prediction:
    label: str
    score: float
    box: tuple[float, float, float, float] | None = None
    """Top, left, bottom and right edge in pixels of the original image."""


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for an image, best first."""

    items: list[Prediction] = field(default_factory=list)
    regions: NDArray[np.uint8] | None = None
    """(H, W) of the original image: i + 1 where item i is, 0 where there is none."""

    measure: str = 'score'
    """What the scores are."""

    @property
    def centers(self) -> list[tuple[float, float]]:
        """Centers (y, x) of the boxes."""
        boxes = [item.box for item in self.items if item.box]
        return [((top + bottom) / 2, (left + right) / 2) for top, left, bottom, right in boxes]

    @classmethod
    def from_sample(cls, sample: Any, classes: Sequence[str] | None = None) -> 'Predictions':
        """Read a data sample that a classifier, detector or segmentor of MMLab's yields.

        Args:
            sample: The data sample, in pixels of the original image.
            classes: Names of the classes; default: their indices.
        """

        def name(index: int) -> str:
            return str(classes[index]) if classes and index < len(classes) else f'class {index}'

        if hasattr(sample, 'pred_instances'):
            return _instances(sample.pred_instances, name)
        if hasattr(sample, 'pred_sem_seg'):
            labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
            return _regions(labels, name)
        if hasattr(sample, 'pred_score'):
            scores, labels = sample.pred_score.topk(min(MOST_CLASSES, len(sample.pred_score)))
            pairs = zip(labels.tolist(), scores.tolist())
            return cls([Prediction(name(label), score) for label, score in pairs])
        return cls()


def _instances(found: Any, name: Any) -> Predictions:
    order = found.scores.argsort(descending=True)
    order = order[found.scores[order] >= MIN_SCORE][:MOST_REGIONS].cpu()
    boxes, labels, scores = (
        getattr(found, key).detach().cpu() for key in ('bboxes', 'labels', 'scores')
    )
    items = []
    for i in order.tolist():
        left, top, right, bottom = boxes[i].tolist()
        items.append(Prediction(name(int(labels[i])), float(scores[i]), (top, left, bottom, right)))
    regions = None
    if hasattr(found, 'masks') and items:
        masks = np.asarray(found.masks.cpu() if hasattr(found.masks, 'cpu') else found.masks)
        regions = np.zeros(masks.shape[1:], np.uint8)
        for number, i in reversed(list(enumerate(order.tolist(), start=1))):  # the best on top
            regions[masks[i].astype(bool)] = number
    return Predictions(items, regions)


def _regions(labels: NDArray, name: Any) -> Predictions:
    values, counts = np.unique(labels, return_counts=True)
    order = counts.argsort()[::-1][:MOST_REGIONS]
    regions = np.zeros(labels.shape, np.uint8)
    for number, i in enumerate(order, start=1):
        regions[labels == values[i]] = number
    items = [Prediction(name(int(values[i])), float(counts[i] / labels.size)) for i in order]
    return Predictions(items, regions, 'share of the image')

"""A trained classifier, detector or segmentor, run through its library's own inferencer."""

import colorsys
import contextlib
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import DATASETS
from mmengine.structures import PixelData
from numpy.typing import NDArray
from torch import Tensor, nn

from ..catalog import config as config_path
from ..catalog import root
from ..engine.config import class_name, read_config
from ..engine.errors import UserError, message_of, user_errors
from ..engine.noise import silence
from ..engine.preflight import check_model
from ..factory import find
from ..weights import compare, read_checkpoint, split_weights, with_our_names

SCORE_THR = 0.3
"""Detections with lower scores are left out unless asked for."""

SMALL = 300
"""Images with shorter sides are enlarged for drawing, up to ``LARGE``: labels would cover them."""

LARGE = 1200

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for an image."""

    sample: Any
    """The library's data sample, on the CPU."""

    result: dict[str, Any]
    """The prediction as plain data, ready for JSON."""

    label_map: NDArray | None = None
    """Class of each pixel, (H, W), of a segmentor."""


class Predictor:
    """A model with trained weights, its test pipeline and its class names, on a device.

    Args:
        model: The model, with its weights.
        cfg: Its config.
        classes: Names of the classes; None if nothing tells them.
        palette: RGB color of each class; None for colors of our own.
        device: Where it runs.
        name: What titles of figures call it.
    """

    task: str

    def __init__(
        self,
        model: nn.Module,
        cfg: Config,
        classes: Sequence[str] | None,
        palette: Sequence[Sequence[int]] | None,
        device: str,
        name: str,
    ) -> None:
        self.model = model.to(device).eval()
        self.name = name
        count = num_classes(model) or len(classes or ())
        self.classes = list(classes or map(str, range(count)))
        if palette is None or len(palette) != len(self.classes):
            palette = colors(len(self.classes))
        self.palette = [tuple(color) for color in palette]
        self.meta = dict(classes=self.classes, palette=self.palette)
        with silence(), user_errors(f'config {cfg.filename}'):
            self.inferencer = self._make_inferencer(cfg, device)

    def _make_inferencer(self, cfg: Config, device: str) -> Any:
        raise NotImplementedError

    def preprocess(self, image: Picture) -> dict[str, list]:
        """Run the test pipeline on an RGB image; returns a batch of one."""
        data = next(iter(self.inferencer.preprocess([np.ascontiguousarray(image[..., ::-1])])))
        return {key: list(values) for key, values in data.items()}

    def predict(self, data: Mapping[str, list]) -> list[Prediction]:
        """Predict for what :meth:`preprocess` returned, one or several images in a batch."""
        return [self._read(sample.cpu()) for sample in self.inferencer.forward(dict(data))]

    def __call__(self, images: Sequence[Picture]) -> list[Prediction]:
        """Predict for RGB images (H, W, 3).

        Images that have the same size after preprocessing are a batch. Others are not padded to
        one another's size, so that the predictions do not depend on the batch.
        """
        found: list[Prediction | None] = [None] * len(images)
        for indices, data in self.batches(images):
            for index, prediction in zip(indices, self.predict(data)):
                found[index] = prediction
        return [prediction for prediction in found if prediction is not None]

    def batches(self, images: Sequence[Picture]) -> list[tuple[list[int], dict[str, list]]]:
        """Preprocess images; returns batches of one size, with the indices of their images."""
        groups: dict[tuple[int, ...], tuple[list[int], dict[str, list]]] = {}
        for index, image in enumerate(images):
            data = self.preprocess(image)
            size = tuple(data['inputs'][0].shape)
            indices, batch = groups.setdefault(size, ([], {key: [] for key in data}))
            indices.append(index)
            for key, values in data.items():
                batch[key] += values
        return list(groups.values())

    def _read(self, sample: Any) -> Prediction:
        raise NotImplementedError

    def draw(self, image: Picture, prediction: Prediction) -> Picture:
        """Draw a prediction over its RGB image, as the library does.

        A small image is enlarged by a whole factor.
        """
        height, width = image.shape[:2]
        factor = max(1, min(-(-SMALL // min(height, width)), LARGE // max(height, width)))
        if factor > 1:
            size = factor * width, factor * height
            enlarged: Any = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
            image = enlarged
        return self._draw(image, prediction.sample, factor)

    def _draw(self, image: Picture, sample: Any, factor: int) -> Picture:
        """Draw a sample over an image that is ``factor`` times as large as the sample's."""
        raise NotImplementedError

    def centers(self, prediction: Prediction) -> list[tuple[float, float]]:
        """Centers (y, x) of the detections, best first; none if it is no detector."""
        return []


class Classifier(Predictor):
    """Classes of images."""

    task = 'classification'

    def _make_inferencer(self, cfg: Config, device: str) -> Any:
        from mmpretrain.apis import ImageClassificationInferencer
        from mmpretrain.visualization import UniversalVisualizer

        self.model._config = cfg
        inferencer = ImageClassificationInferencer(
            self.model, pretrained=False, device=device, classes=self.classes
        )
        inferencer.visualizer = UniversalVisualizer()
        return inferencer

    def _read(self, sample: Any) -> Prediction:
        (found,) = self.inferencer.postprocess([sample], None)
        scores = sample.pred_score
        best = scores.argsort(descending=True)[:5].tolist()
        result = dict(
            pred_label=found['pred_label'],
            pred_class=found['pred_class'],
            pred_score=found['pred_score'],
            top5=[{'class': self.classes[i], 'score': scores[i].item()} for i in best],
            pred_scores=scores.tolist(),
        )
        return Prediction(sample, result)

    def _draw(self, image: Picture, sample: Any, factor: int) -> Picture:
        visualizer = self.inferencer.visualizer
        return visualizer.visualize_cls(image, sample, classes=self.classes, draw_gt=False)


class Detector(Predictor):
    """Boxes, and masks of instances."""

    task = 'detection'
    score_thr = SCORE_THR

    def _make_inferencer(self, cfg: Config, device: str) -> Any:
        from mmdet.apis import DetInferencer

        self.model.dataset_meta = self.meta  # type: ignore[assignment]
        cfg.visualizer = ConfigDict(type='DetLocalVisualizer', name='dat_pp')
        return _with_model(DetInferencer, self.model)(cfg, device=device)

    def preprocess(self, image: Picture) -> dict[str, list]:
        ((_, data),) = self.inferencer.preprocess([np.ascontiguousarray(image[..., ::-1])])
        return {key: list(values) for key, values in data.items()}

    def _read(self, sample: Any) -> Prediction:
        found = sample.pred_instances
        sample.pred_instances = found[found.scores >= self.score_thr]
        result = self.inferencer.pred2dict(sample)
        result['classes'] = [self.classes[label] for label in result['labels']]
        return Prediction(sample, result)

    def _draw(self, image: Picture, sample: Any, factor: int) -> Picture:
        found = sample.pred_instances
        parts = dict(found.items()) | dict(bboxes=found.bboxes * factor)
        if 'masks' in found:
            parts['masks'] = _enlarge(found.masks, factor)
        sample = type(sample)(pred_instances=type(found)(**parts))
        settings: Any = dict(return_vis=True, pred_score_thr=self.score_thr)
        return self.inferencer.visualize([image], [sample], **settings)[0]

    def centers(self, prediction: Prediction) -> list[tuple[float, float]]:
        found = prediction.sample.pred_instances
        boxes = found.bboxes[found.scores.argsort(descending=True)].tolist()
        return [((y0 + y1) / 2, (x0 + x1) / 2) for x0, y0, x1, y1 in boxes]


class Segmentor(Predictor):
    """A class for every pixel."""

    task = 'segmentation'

    def _make_inferencer(self, cfg: Config, device: str) -> Any:
        from mmseg.apis import MMSegInferencer

        self.model.dataset_meta = self.meta  # type: ignore[assignment]
        cfg.visualizer = ConfigDict(type='SegLocalVisualizer', name='dat_pp')
        inferencer = _with_model(MMSegInferencer, self.model)(cfg, device=device, **self.meta)
        # The same place for each label; mmseg's own sorts all pixels of a class as a Python list.
        inferencer.visualizer._get_center_loc = _label_place
        return inferencer

    def _read(self, sample: Any) -> Prediction:
        label_map = sample.pred_sem_seg.data[0].numpy()
        label_map = label_map.astype(np.uint8 if len(self.classes) <= 256 else np.uint16)
        labels, pixels = np.unique(label_map, return_counts=True)
        result = dict(
            labels=labels.tolist(),
            classes=[self.classes[label] for label in labels],
            pixels=pixels.tolist(),
        )
        return Prediction(sample, result, label_map)

    def _draw(self, image: Picture, sample: Any, factor: int) -> Picture:
        sample = type(sample)(
            pred_sem_seg=PixelData(data=_enlarge(sample.pred_sem_seg.data, factor))
        )
        settings: Any = dict(return_vis=True, opacity=0.5)
        return self.inferencer.visualize([image], [sample], **settings)[0]


PREDICTORS = {'mmpretrain': Classifier, 'mmdet': Detector, 'mmseg': Segmentor}
"""``default_scope`` of a config -> its predictor."""


def _label_place(mask: Picture) -> NDArray[np.int64]:
    """The middle (x, y) of the first row that has most pixels of a mask."""
    y = (mask == 1).sum(1).argmax()
    (columns,) = np.nonzero(mask[y] == 1)
    return np.array([columns[len(columns) // 2], y])


def _enlarge(maps: Tensor, factor: int) -> Tensor:
    """Repeat the pixels of maps (N, H, W) along both axes."""
    return maps.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def _with_model(inferencer: Any, model: nn.Module) -> Any:
    """Make a subclass of an inferencer that takes a model instead of building one.

    The inferencers read a checkpoint by unpickling it, which runs the code that it names.
    """
    return type(inferencer.__name__, (inferencer,), dict(_init_model=lambda *_, **__: model))


def load_predictor(
    model: str | os.PathLike[str], weights: str | os.PathLike[str], device: str | None = None
) -> Predictor:
    """Load a model with trained weights for prediction.

    Args:
        model: A config file, a config of this package by name, or a published classifier.
        weights: A checkpoint file of the whole model; published files are taken as they are.
        device: For example ``'cpu'`` or ``'cuda:1'``. Default: the accelerator, if there is one.

    Raises:
        UserError: There is no such model, it needs a library that is not installed, or the weights
            do not fit it.
    """
    path = find_config(os.fspath(model))
    device = _check_device(device)
    cfg = read_config(Namespace(config=path, cfg_options=None))
    scope = cfg.get('default_scope')
    if scope not in PREDICTORS:
        raise UserError(
            f'config {path}: default_scope is {scope!r}, expected {", ".join(PREDICTORS)}'
        )
    dataset = _check_pipeline(cfg, path)
    built = check_model(cfg, pretrained=False)
    if not hasattr(built, 'test_step') or num_classes(built) is None:
        raise UserError(f'config {path}: {type(built).__name__} predicts no classes')
    with silence(), user_errors('--weights'):
        meta = _load_weights(built, os.fspath(weights), path)
    classes, palette = _classes(meta, dataset, scope, num_classes(built))
    return PREDICTORS[scope](built, cfg, classes, palette, device, Path(path).stem)


def find_config(name: str) -> str:
    """Path of a config file; of a config of this package; or of a published classifier.

    Raises:
        UserError: There is none.
    """
    if (name.endswith('.py') and ('/' in name or os.sep in name)) or Path(name).is_file():
        return name  # reading it reports what is missing
    try:
        return config_path(name)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            wanted = find(name)
            for path in sorted((root() / 'configs' / 'imagenet').glob('*.py')):
                with contextlib.suppress(ValueError):
                    if find(path.stem) == wanted:
                        return str(path)
        raise UserError(f'--model: {message_of(error)}; or give a config file') from None


def num_classes(model: nn.Module) -> int | None:
    """Number of classes that the last head of a model tells apart; None if it has no such head."""
    for name in ('head', 'decode_head', 'roi_head.bbox_head', 'bbox_head', 'panoptic_head'):
        head: Any = model
        for part in name.split('.'):
            head = getattr(head, part, None)
        if isinstance(head, nn.ModuleList):
            head = head[-1]
        for key in ('num_classes', 'num_things_classes'):
            if isinstance(count := getattr(head, key, None), int):
                return count
    return None


def colors(count: int) -> list[tuple[int, int, int]]:
    """Colors that differ, (R, G, B) of 0 to 255; those of the first classes do not depend on n."""
    hues = (index * 0.618034 % 1 for index in range(count))
    return [
        tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.95))  # type: ignore[misc]
        for hue in hues
    ]


def _check_device(device: str | None) -> str:
    device = device or get_device()
    with user_errors(f'--device {device}'):
        torch.zeros(1, device=device)
    return device


def _check_pipeline(cfg: Config, path: str) -> ConfigDict:
    """Leave the dataset of ``test_dataloader`` without wrappers and without annotations."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    while dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    if not cfg.get('model') or not dataset or not dataset.get('pipeline'):
        raise UserError(f'config {path}: needs a model and a pipeline in test_dataloader.dataset')
    steps = [s for s in dataset.pipeline if 'Annotation' not in class_name(s['type'])]
    for step in steps:
        if class_name(step['type']) == 'LoadImageFromFile':
            step['type'] = 'LoadImageFromFile'  # the inferencers look for the name
    dataset.pipeline = steps
    cfg.test_dataloader.dataset = dataset
    return dataset


def _load_weights(model: nn.Module, path: str, config: str) -> Mapping[str, Any]:
    """Load a checkpoint, and return its ``meta``.

    Raises:
        ValueError: It does not fit the model.
    """
    checkpoint = read_checkpoint(path)
    weights = with_our_names(checkpoint.weights)
    if 'backbone.stem.conv1.weight' not in weights and 'stem.conv1.weight' in weights:
        backbone, head, _ = split_weights(weights)  # a classifier of plain PyTorch
        weights = {f'backbone.{name}': value for name, value in backbone.items()} | head
    if mismatch := compare(model, weights):
        raise ValueError(f'{path} does not fit {config}: {mismatch}')
    model.load_state_dict(weights)
    meta = checkpoint.content.get('meta')
    return meta if isinstance(meta, Mapping) else {}


def _classes(
    meta: Mapping[str, Any], dataset: ConfigDict, scope: str, count: int | None
) -> tuple[Sequence[str] | None, Sequence[Sequence[int]] | None]:
    """Names and colors of the classes: those of the checkpoint, or of the config's dataset.

    Names of another number of classes are of something else.
    """
    found: list[Any] = [meta.get('dataset_meta'), meta]
    with contextlib.suppress(Exception), silence():  # files that metainfo names may be missing
        with DATASETS.switch_scope_and_registry(scope) as registry:
            kind: Any = dataset.type
            if isinstance(kind, str):
                kind = registry.get(kind)
        stated = dict(dataset.get('metainfo') or {})
        if dataset.get('classes'):
            stated['classes'] = dataset.classes
        found.append(kind._load_metainfo(stated))
    for source in found:
        if isinstance(source, Mapping):
            lower = {str(key).lower(): value for key, value in source.items()}
            classes, palette = lower.get('classes'), lower.get('palette')
            if isinstance(classes, list | tuple) and count in (None, len(classes)):
                colored = isinstance(palette, list | tuple)
                return [str(name) for name in classes], palette if colored else None
    return None, None

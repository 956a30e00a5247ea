"""Models and images that a person names: what ``tools/explain.py`` is given."""

import contextlib
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import nn

from ..catalog import config as config_path
from ..engine.errors import UserError, message_of, user_errors
from ..factory import PUBLISHED, create_model, find
from ..weights import compare, load_pretrained, read_checkpoint, with_our_names
from .explorer.predictions import Predictions
from .geometry import ImageGeometry
from .tracer import Trace, find_backbone, trace

SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def find_images(names: Sequence[str]) -> list[Path]:
    """Image files: those that are named, and all of named folders, in order.

    Raises:
        UserError: There is no such file, or no image in a folder.
    """
    found = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f'image: no images in the folder {path} ({", ".join(SUFFIXES)})')
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f'image: no such file or folder: {path}')
    return found


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image that is turned upright; its pixels are not decoded.

    Raises:
        UserError: It is not an image.
    """
    with _reading(path), Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (width, height) if turned else (height, width)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read an image as RGB, (H, W, 3), turned upright.

    Raises:
        UserError: It cannot be read.
    """
    with _reading(path), Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f'image: cannot read {path}: {message_of(error)}') from error


@dataclass
class Source:
    """A model and its preprocessing."""

    model: nn.Module
    name: str
    trained: bool
    """Whether it has weights of a file."""

    def trace(self, path: Path, rgb: NDArray) -> Trace:
        """Run the model on an image, preprocessed as in its tests."""
        raise NotImplementedError

    def predictions(self, path: Path) -> Predictions:
        """What the model predicts for an image; nothing if its heads have no weights."""
        return Predictions()


class PlainSource(Source):
    """A published backbone by name, with the preprocessing of its classifier."""

    def trace(self, path: Path, rgb: NDArray) -> Trace:
        cfg = PUBLISHED[find(self.name)].default_cfg()
        side = cfg['input_size'][1]
        resized = round(side / cfg['crop_pct'])
        image = Image.fromarray(rgb).resize((resized, resized), Image.Resampling.BICUBIC)
        start = (resized - side) // 2
        image = image.crop((start, start, start + side, start + side))
        pixels = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ('mean', 'std'))
        height, width = rgb.shape[:2]
        geometry = ImageGeometry(
            size=(height, width),
            shape=(side, side),
            scale=(resized / height, resized / width),
            offset=(start, start),
        )
        return trace(self.model, ((pixels - mean) / std)[None], [geometry])


@dataclass
class ConfigSource(Source):
    """The model of a config, with the test pipeline of its data."""

    pipeline: Any = None
    whole: bool = False
    """Whether heads have weights of a file too."""

    classes: Sequence[str] | None = None
    """Names of the classes, as the file of weights says."""

    def trace(self, path: Path, rgb: NDArray) -> Trace:
        return trace(self.model, self._data(path))

    def predictions(self, path: Path) -> Predictions:
        if not self.whole or not hasattr(self.model, 'test_step'):
            return Predictions()
        with torch.no_grad():
            (sample,) = self.model.test_step(self._data(path))  # type: ignore[operator]
        return Predictions.from_sample(sample, self.classes)

    def _data(self, path: Path) -> Any:
        from mmengine.dataset import pseudo_collate

        return pseudo_collate([self.pipeline(dict(img_path=str(path), img_id=0))])


def load_source(name: str, weights: str | None) -> Source:
    """Make the model of a name or a config file, with weights of a file.

    Args:
        name: A config file, a config of this package by name, or a published model.
        weights: A checkpoint file; published files are taken as they are. If it does not fit a
            whole config's model, the backbone alone is loaded. None for random weights.

    Raises:
        UserError: There is no such model, it needs a library that is not installed, or the weights
            do not fit it.
    """
    if not name.endswith('.py') and not Path(name).is_file():
        try:
            find(name)
        except ValueError as error:
            try:
                name = config_path(name)
            except (OSError, ValueError):
                raise UserError(f'--model: {message_of(error)}; or give a config file') from None
        else:
            with user_errors('--weights'):
                model = create_model(name, weights, features_only=True, out_indices=(3,))
            return PlainSource(model.eval(), name, trained=weights is not None)
    return _load_config(name, weights)


def _load_config(path: str, weights: str | None) -> ConfigSource:
    from mmengine.dataset import Compose

    from ..engine.config import class_name, read_config
    from ..engine.noise import silence
    from ..engine.preflight import check_model

    cfg = read_config(Namespace(config=path, cfg_options=None))
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    while dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    if not cfg.get('model') or not dataset or not dataset.get('pipeline'):
        raise UserError(f'config {path}: needs a model and a pipeline in test_dataloader.dataset')
    model = check_model(cfg, pretrained=False).eval()
    with user_errors(f'config {path}'):
        find_backbone(model)
        with silence():
            steps = [s for s in dataset.pipeline if 'Annotations' not in class_name(s['type'])]
            pipeline = Compose(steps)
    source = ConfigSource(model, Path(path).stem, weights is not None, pipeline)
    if weights:
        with user_errors('--weights'), silence():
            source.whole, source.classes = _load_weights(model, weights)
    return source


def _load_weights(model: nn.Module, path: str) -> tuple[bool, Sequence[str] | None]:
    """Load a whole model, or else its backbone alone.

    Returns:
        Whether it is whole, and the names of the classes if the file has them.
    """
    checkpoint = read_checkpoint(path)
    weights = with_our_names(checkpoint.weights)
    if compare(model, weights):
        load_pretrained(find_backbone(model), path)
        return False, None
    model.load_state_dict(weights)
    meta: Any = checkpoint.content.get('meta') or {}
    return True, (meta.get('dataset_meta') or {}).get('classes')

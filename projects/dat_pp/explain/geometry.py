"""Where the cells of a feature map lie in the image that a person sees.

Pixels and cells are counted from 0, rows first, and an integer is the center of a pixel or cell, as
in ``matplotlib.pyplot.imshow``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FLIPS = {
    None: (False, False),
    'vertical': (True, False),
    'horizontal': (False, True),
    'diagonal': (True, True),
}
ROUNDING = 1.5
"""Pixels by which the size of a resized image may differ from its exact size."""


@dataclass(frozen=True)
class ImageGeometry:
    """How an image came into the model: resized, cropped, flipped, then padded at the bottom right.

    All pairs are (vertical, horizontal).
    """

    size: tuple[int, int]
    """Height and width of the original image."""

    shape: tuple[int, int]
    """Height and width of its part of the model's input, without padding."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Pixels of the input per pixel of the original image."""

    offset: tuple[float, float] = (0.0, 0.0)
    """Top left corner of the crop in the resized image."""

    flipped: tuple[bool, bool] = (False, False)
    """Whether the crop was flipped upside down, and left to right."""

    @classmethod
    def from_metainfo(cls, metainfo: Mapping[str, Any]) -> 'ImageGeometry':
        """Read ``ori_shape``, ``img_shape``, ``scale_factor`` and ``flip`` of a data sample.

        MMLab's pipelines do not record crops. An image that is smaller than its size before and
        the scale factor say is taken for a center crop, as in the test pipelines of classifiers.

        Raises:
            ValueError: ``ori_shape`` or ``img_shape`` is missing.
        """
        for key in ('ori_shape', 'img_shape'):
            if metainfo.get(key) is None:
                raise ValueError(f'{key} is missing in the metainfo of a data sample')
        size, shape = metainfo['ori_shape'][:2], metainfo['img_shape'][:2]
        factors = metainfo.get('scale_factor')  # width first
        if factors is None:
            factors = (1.0, 1.0) if size == shape else (shape[1] / size[1], shape[0] / size[0])
        elif isinstance(factors, int | float):
            factors = (factors, factors)
        scale = float(factors[1]), float(factors[0])
        resized = [length * factor for length, factor in zip(size, scale)]
        top, left = (_crop_start(a, b) for a, b in zip(resized, shape))
        # The pipeline's own padding, if any, is at the bottom right too.
        shape = [b if b - a < ROUNDING else round(a) for a, b in zip(resized, shape)]
        direction = metainfo.get('flip_direction') if metainfo.get('flip') else None
        return cls(
            size=(int(size[0]), int(size[1])),
            shape=(int(shape[0]), int(shape[1])),
            scale=scale,
            offset=(top, left),
            flipped=FLIPS[direction],
        )

    def to_original(self, points: Tensor) -> Tensor:
        """Map (y, x) in pixels of the model's input, (..., 2), to pixels of the original image."""
        points = points + 0.5  # from the corner, not the center, of pixel 0
        flipped = points.new_tensor(self.shape) - points
        points = torch.where(_like(points, self.flipped), flipped, points)
        return (points + points.new_tensor(self.offset)) / points.new_tensor(self.scale) - 0.5

    def to_input(self, points: Tensor) -> Tensor:
        """Map (y, x) in pixels of the original image, (..., 2), to pixels of the model's input."""
        points = (points + 0.5) * points.new_tensor(self.scale) - points.new_tensor(self.offset)
        flipped = points.new_tensor(self.shape) - points
        return torch.where(_like(points, self.flipped), flipped, points) - 0.5

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """Top, left, bottom and right edge, in pixels of the original image, of what was seen."""
        corners = torch.tensor([(0.0, 0.0), self.shape], dtype=torch.float64) - 0.5
        (y0, x0), (y1, x1) = self.to_original(corners).tolist()
        (top, bottom), (left, right) = sorted((y0, y1)), sorted((x0, x1))
        return (
            max(top, -0.5),
            max(left, -0.5),
            min(bottom, self.size[0] - 0.5),
            min(right, self.size[1] - 0.5),
        )


@dataclass(frozen=True)
class MapGeometry:
    """Where the cells of a feature map of a batch lie in its images.

    The center of cell i is pixel ``stride * i + offset`` of the model's input: the middle of the
    pixels that the cell's convolutions see. That is pixel ``stride * i`` for overlapped
    convolutions and the middle of the patch for disjoint ones.
    """

    size: tuple[int, int]
    stride: int
    offset: float
    images: tuple[ImageGeometry, ...]

    def to_pixels(self, cells: Tensor) -> Tensor:
        """Map (row, column), (B, ..., 2), to (y, x) in pixels of the original images."""
        points = cells * self.stride + self.offset
        return torch.stack([image.to_original(p) for image, p in zip(self.images, points)])

    def to_cell(self, pixel: tuple[float, float], image: int) -> tuple[int, int]:
        """Nearest cell (row, column) of a pixel (y, x) of an original image.

        Raises:
            ValueError: The pixel is outside of the image or of what the model saw of it.
        """
        geometry = self.images[image]
        (top, left, bottom, right), (y, x) = geometry.seen, pixel
        if not (top <= y <= bottom and left <= x <= right):
            height, width = geometry.size
            message = f'({y:g}, {x:g}) is outside of the {height} x {width} image'
            if (bottom - top, right - left) != (height, width):
                message += (
                    f', of which the model saw rows {round(top + 0.5)} to {round(bottom - 0.5)}, '
                    f'columns {round(left + 0.5)} to {round(right - 0.5)}'
                )
            raise ValueError(message)
        point = geometry.to_input(torch.tensor([y, x], dtype=torch.float64))
        cell = ((point - self.offset) / self.stride).round().long().tolist()
        row, column = (min(max(i, 0), length - 1) for i, length in zip(cell, self.size))
        return row, column

    def inside(self) -> Tensor:
        """Whether the center of each cell lies within its image, not in padding: (B, H, W)."""
        axes = [torch.arange(length) * self.stride + self.offset for length in self.size]
        masks = []
        for image in self.images:
            y, x = (axis <= length - 0.5 for axis, length in zip(axes, image.shape))
            masks.append(y[:, None] & x)
        return torch.stack(masks)


def stage_offsets(convs: Iterable[Iterable[nn.Conv2d]]) -> list[tuple[int, float]]:
    """Stride and offset of the feature map of each stage, see :class:`MapGeometry`.

    Args:
        convs: The convolutions that lead to each stage, after those of the stage before.
    """
    stride, offset, stages = 1, 0.0, []
    for step in convs:
        for conv in step:
            offset += stride * ((conv.kernel_size[0] - 1) / 2 - int(conv.padding[0]))
            stride *= conv.stride[0]
        stages.append((stride, offset))
    return stages


def _crop_start(length: float, crop: int) -> float:
    """Start of a center crop on an axis of ``length`` pixels after all resizing."""
    if length - crop < ROUNDING:
        return 0.0
    # A crop comes first, then a resize, where the whole axis would not have whole pixels.
    whole = abs(length - round(length)) < 1e-3
    return float(round((round(length) - crop) / 2)) if whole else (length - crop) / 2


def _like(points: Tensor, flags: tuple[bool, bool]) -> Tensor:
    return torch.tensor(flags, device=points.device)

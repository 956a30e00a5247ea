"""Images and videos that a person names."""

import glob
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..engine.errors import UserError, message_of
from ..explain.sources import SUFFIXES, find_images

VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')


@dataclass(frozen=True)
class Input:
    """An image file or a video."""

    path: Path
    name: str
    """Name of its output files, without suffix; no two inputs share one."""

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def count(self) -> int:
        """Number of images: frames, as the header of a video says; 1 for what is damaged."""
        if not self.is_video:
            return 1
        return max(1, int(cv2.VideoCapture(str(self.path)).get(cv2.CAP_PROP_FRAME_COUNT)))

    def read(self) -> Iterator[NDArray[np.uint8]]:
        """Yield RGB images (H, W, 3): one, or the frames of a video.

        Raises:
            ValueError: The file cannot be read.
        """
        if not self.is_video:
            yield read_image(self.path)
            return
        video = cv2.VideoCapture(str(self.path))
        found, frame = video.read()
        if not found:
            raise ValueError('no frames: damaged, or in a format that OpenCV cannot decode')
        while found:
            yield np.ascontiguousarray(frame[..., ::-1])
            found, frame = video.read()


def find_inputs(names: Sequence[str]) -> list[Input]:
    """Find what is named: image files, videos, all images of folders, and glob patterns.

    Raises:
        UserError: There is no such file, or no image in a folder or for a pattern.
    """
    paths: list[Path] = []
    for name in names:
        if not Path(name).exists() and glob.has_magic(name):
            suffixes = (*SUFFIXES, *VIDEO_SUFFIXES)
            matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
            matches = [path for path in matches if path.suffix.lower() in suffixes]
            if not matches:
                raise UserError(f'image: no images or videos match {name}')
            paths += matches
        else:
            paths += find_images([name])
    names_taken: set[str] = set()
    inputs = []
    for path in paths:
        stem, number = path.stem, 2
        while stem in names_taken:
            stem, number = f'{path.stem}-{number}', number + 1
        names_taken.add(stem)
        inputs.append(Input(path, stem))
    return inputs


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as the libraries' pipelines do, but as RGB, (H, W, 3).

    Raises:
        ValueError: It cannot be read, or is incomplete.
    """
    try:
        content = path.read_bytes()
        if not content:
            raise ValueError('empty file')
        try:
            # Of a truncated file, OpenCV logs errors, and some releases fill the rest with gray.
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        except UnidentifiedImageError:
            pass  # OpenCV may know the format
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(getattr(error, 'strerror', None) or message_of(error)) from error
    if pixels is None:
        raise ValueError('not an image, or in a format that OpenCV cannot decode')
    return np.ascontiguousarray(pixels[..., ::-1])

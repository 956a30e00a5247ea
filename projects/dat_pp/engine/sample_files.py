"""Read the files of a dataset in several processes and report what is wrong with them."""

import os.path as osp
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from .errors import message_of

SHOWN = 5  # label values without a class
CHUNK = 16  # samples per task of a worker process


class Sample(NamedTuple):
    """The files of a sample, and the image's width and height if the annotations state them."""

    image: str
    label_map: str | None
    size: tuple[int, int] | None


def in_processes(
    inspect: Callable, samples: Sequence[Sample], workers: int, name: str
) -> Iterator[tuple[str, str]]:
    """Yield the problems of the samples, and show a progress bar on stderr.

    Args:
        inspect: Returns the problems of some samples, as :func:`inspect_samples` does.
        samples: The samples.
        workers: Number of worker processes; with 0 everything runs in this process.
        name: Title of the progress bar.
    """
    chunks = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
    # One line every 30 seconds if the output is a file.
    pause = 0.2 if sys.stderr.isatty() else 30
    pool = ProcessPoolExecutor(workers, initializer=_ignore_interrupts) if workers else None
    results: Iterable = pool.map(inspect, chunks) if pool else map(inspect, chunks)
    try:
        with tqdm(total=len(samples), desc=name, unit='images', mininterval=pause) as bar:
            for chunk, problems in zip(chunks, results):
                yield from problems
                bar.update(len(chunk))
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def inspect_samples(
    samples: Sequence[Sample], allowed: frozenset[int] | None, fast: bool
) -> list[tuple[str, str]]:
    """Look for the files and, unless ``fast``, decode them.

    Returns:
        Type and place of each problem.
    """
    return [problem for sample in samples for problem in _inspect(sample, allowed, fast)]


def _inspect(
    sample: Sample, allowed: frozenset[int] | None, fast: bool
) -> Iterator[tuple[str, str]]:
    there = {}
    for name in ('image', 'label_map'):
        path = getattr(sample, name)
        if path and not osp.isfile(path):
            yield 'missing files', path
        elif path and not osp.getsize(path):
            yield 'empty files', path
        elif path and not fast:
            try:
                there[name] = _decode(path)
            except Exception as error:
                yield 'unreadable files', f'{path}: {message_of(error)}'
    if 'image' in there:
        _, size = there['image']
        if sample.size and size != sample.size:
            yield 'wrong sizes', f'{sample.image}: {size}, annotated as {sample.size}'
    if 'label_map' in there:
        pixels, label_size = there['label_map']
        if 'image' in there and size != label_size:
            yield 'wrong sizes', f'{sample.label_map}: {label_size}, its image {size}'
        if allowed is not None:
            found = f'{pixels.shape[-1]} channels' if pixels.ndim > 2 else _unknown(pixels, allowed)
            if found:
                yield 'wrong label maps', f'{sample.label_map}: {found}'


def _unknown(pixels: np.ndarray, allowed: frozenset[int]) -> str:
    values = [value for value in np.unique(pixels).tolist() if value not in allowed]
    return f'values without a class: {", ".join(map(str, values[:SHOWN]))}' if values else ''


def _decode(path: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image: pixels as stored, and width and height after EXIF rotation."""
    Image.MAX_IMAGE_PIXELS = None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with Image.open(path) as image:
            size = image.size[::-1] if _is_rotated(image) else image.size
            return np.asarray(image), size


def _is_rotated(image: Image.Image) -> bool:
    """Whether OpenCV and image viewers rotate the image by 90 degrees."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception:  # broken EXIF data; the image may be good
        return False

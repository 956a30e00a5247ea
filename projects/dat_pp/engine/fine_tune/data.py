"""A dataset on disk: its classes and subsets, and how its files are found."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError, user_errors
from .split import VAL_SHARE, split

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif')  # mmpretrain's
TRAIN = ('train', 'training')
VAL = ('val', 'valid', 'validation', 'test')
IMAGES = ('images', 'imgs', 'img_dir', 'JPEGImages')
LABELS = ('annotations', 'labels', 'masks', 'label_maps', 'ann_dir', 'SegmentationClass')
IGNORED = 255  # value of label maps
PROJECT = '{{ fileDirname }}'  # the folder of a config, which mmengine fills in


@dataclass
class Subset:
    """The training or validation images.

    Attributes:
        count: Number of images.
        settings: Settings of its dataset in a config.
    """

    count: int
    settings: dict[str, Any]


@dataclass
class Data:
    """What a dataset on disk holds.

    Attributes:
        classes: Names, in the order of the labels.
        train, val: The two subsets.
        files: Files for the project, content by name.
        notes: What a user should know.
    """

    classes: list[str]
    train: Subset
    val: Subset
    _: KW_ONLY
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def given_folders(paths: Sequence[Path], what: str) -> tuple[Path, Path | None]:
    """Folders for training and validation: two that are given, or found in one."""
    for path in paths:
        if not path.is_dir():
            raise UserError(f'data: {path} is a file; expected a folder of {what}')
    if len(paths) > 2:
        raise UserError(f'data: expected one or two folders of {what}, got {len(paths)}')
    if len(paths) == 2:
        return paths[0], paths[1]
    train = child(paths[0], TRAIN)
    return (train, child(paths[0], VAL)) if train else (paths[0], None)


def child(folder: Path, names: Iterable[str]) -> Path | None:
    """The first folder of these names in ``folder``."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def images_in(folder: Path) -> list[Path]:
    """All images in a folder and its subfolders, in order."""
    return sorted(p for p in folder.rglob('*') if p.suffix.lower() in SUFFIXES and p.is_file())


def read_labels(path: Path) -> set[int]:
    """The values of a label map except ``IGNORED``."""
    with user_errors(f'data: cannot read the label map {path}'), Image.open(path) as image:
        values = np.asarray(image)
    if values.ndim > 2:
        raise UserError(
            f'data: label map {path} is a color image; expected one channel of class numbers'
        )
    return {int(value) for value in np.unique(values)} - {IGNORED}


def with_split(
    names: list[str],
    labels: Sequence[Collection[int]],
    write: Callable[[Sequence[int]], str],
    settings: dict[str, Any],
    suffix: str = '.txt',
    notes: Sequence[str] = (),
) -> Data:
    """A dataset of which some images are set aside for validation.

    Args:
        names: The classes.
        labels: The classes that occur in each image.
        write: Returns the content of the file that lists images, given by index.
        settings: Settings that both subsets share.
        suffix: Of that file.
        notes: What else a user should know.

    Raises:
        UserError: There are too few images to split.
    """
    parts = split(labels)
    train, val = map(len, parts)
    if not train or not val:
        raise UserError(f'data: {train + val} images are too few to set some aside for validation')
    files = [f'{name}{suffix}' for name in ('train', 'val')]
    said = (
        f'no validation images: {val} of {train + val} ({VAL_SHARE:.0%} of each class) are set '
        f'aside, listed in {" and ".join(files)}'
    )
    return Data(
        names,
        *(Subset(len(p), dict(settings, ann_file=f'{PROJECT}/{f}')) for p, f in zip(parts, files)),
        files={file: write(part) for file, part in zip(files, parts)},
        notes=[*notes, said],
    )

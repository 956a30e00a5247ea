"""Recognize class folders, as of ImageNet, for classification."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .data import Data, Subset, given_folders, images_in, with_split


def class_folders(paths: Sequence[Path]) -> Data:
    """A folder of class folders, with or without ``train`` and ``val`` above them; or two.

    The classes are the sorted names of the folders.

    Raises:
        UserError: There are no class folders, no images in one, or others for validation.
    """
    train, val = given_folders(paths, 'class folders')
    names = _classes(train)
    images = {name: images_in(train / name) for name in names}
    total = sum(map(len, images.values()))
    for name, files in images.items():
        if not files:
            raise UserError(f'data: no images in the class folder {train / name}')
    if len(names) < 2:
        raise UserError(f'data: {train} has one class folder, {names[0]}; expected at least two')
    if val:
        if _classes(val) != names:
            differing = sorted({*_classes(val)} ^ {*names})
            raise UserError(
                f'data: class folders of {train} and {val} differ: {", ".join(differing[:5])}'
            )
        count = sum(len(images_in(val / name)) for name in names)
        if not count:
            raise UserError(f'data: no images in {val}')
        return Data(names, _folder(train, total), _folder(val, count))
    entries = [(path, label) for label, name in enumerate(names) for path in images[name]]
    lines = [f'{path.relative_to(train).as_posix()} {label}\n' for path, label in entries]
    return with_split(
        names,
        [[label] for _, label in entries],
        lambda part: ''.join(lines[i] for i in part),
        dict(data_root=str(train)),
    )


def _folder(path: Path, count: int) -> Subset:
    return Subset(count, dict(data_root=str(path)))


def _classes(root: Path) -> list[str]:
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith('.'))
    if not names:
        raise UserError(f'data: no class folders in {root}; sort the images into one per class')
    return names

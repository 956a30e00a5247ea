"""Recognize images with label maps, for semantic segmentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, user_errors
from .data import (
    IMAGES,
    LABELS,
    SUFFIXES,
    TRAIN,
    VAL,
    Data,
    Subset,
    child,
    images_in,
    read_labels,
    with_split,
)


def label_maps(paths: Sequence[Path], classes: Sequence[str] | None) -> Data:
    """A folder with images and label maps in two folders, or these two, or four with validation.

    Args:
        paths: The folders.
        classes: Names of the values 0, 1, ...; default: the lines of ``classes.txt`` in the folder.

    Raises:
        UserError: They are not laid out like that, or hold values beyond the classes.
    """
    for path in paths:
        if not path.is_dir():
            raise UserError(f'data: {path} is a file; expected folders of images and label maps')
    (images, labels), val = _folders(paths)
    suffixes = _suffixes(images, labels)
    files = _named(images, suffixes[0])
    maps = [labels / f'{name}{suffixes[1]}' for name in files]
    for path in maps:
        if not path.is_file():
            raise UserError(f'data: no label map {path}')
    found = [read_labels(path) for path in maps]
    names = _names(paths[0], classes, set().union(*found))
    for path, values in zip(maps, found):
        if beyond := sorted(values - set(range(len(names)))):
            raise UserError(
                f'data: label map {path} holds {beyond[0]}, beyond the {len(names)} classes '
                f'0 to {len(names) - 1}'
            )
    present = set().union(*found)
    if len(present) < 2:
        raise UserError(
            f'data: label maps of {labels} hold one class only, {names[min(present, default=0)]}; '
            'the value 255 is not a class, it is ignored'
        )
    absent = [name for value, name in enumerate(names) if value not in present]
    notes = [f'classes without a pixel: {", ".join(absent)}'] if absent else []
    if val:
        other = _suffixes(*val)
        count = len(_named(val[0], other[0]))
        return Data(
            names,
            Subset(len(files), _settings((images, labels), suffixes)),
            Subset(count, _settings(val, other)),
            notes=notes,
        )
    return with_split(
        names,
        [sorted(values) for values in found],
        lambda part: ''.join(f'{files[i]}\n' for i in part),
        _settings((images, labels), suffixes),
        notes=notes,
    )


def _folders(paths: Sequence[Path]) -> tuple[tuple[Path, Path], tuple[Path, Path] | None]:
    """Folders of images and of label maps, for training and validation."""
    if len(paths) == 4:
        return (paths[0], paths[1]), (paths[2], paths[3])
    if len(paths) == 2:
        images, labels = paths
    elif len(paths) == 1:
        root = paths[0]
        train, val = (_pair(folder) if folder else None for folder in _subfolders(root))
        if train:
            return train, val
        pair = _pair(root)
        if not pair:
            raise UserError(
                f'data: {root} has no folders of images ({", ".join(IMAGES)}) and of label maps '
                f'({", ".join(LABELS)}); name both'
            )
        images, labels = pair
    else:
        raise UserError(f'data: expected one, two or four folders, got {len(paths)}')
    train, val = (_both(images, labels, names, names) for names in (TRAIN, VAL))
    return (train, val) if train else ((images, labels), None)


def _subfolders(root: Path) -> tuple[Path | None, Path | None]:
    return child(root, TRAIN), child(root, VAL)


def _pair(folder: Path) -> tuple[Path, Path] | None:
    return _both(folder, folder, IMAGES, LABELS)


def _both(
    images: Path, labels: Path, image_names: Sequence[str], label_names: Sequence[str]
) -> tuple[Path, Path] | None:
    found = child(images, image_names), child(labels, label_names)
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _suffixes(images: Path, labels: Path) -> tuple[str, str]:
    """What follows the common name of an image and its label map, say ``.jpg``, ``_mask.png``."""
    files = images_in(images)
    if not files:
        raise UserError(f'data: no images in the folder {images} ({", ".join(SUFFIXES)})')
    suffixes = sorted({path.suffix for path in files})
    if len(suffixes) > 1:
        raise UserError(
            f'data: images in {images} end in {" and ".join(suffixes)}; mmseg expects one suffix'
        )
    first = files[0]
    folder = labels / first.relative_to(images).parent
    near = (p for p in sorted(folder.glob('*')) if p.name.startswith(first.stem))
    fitting = [p.name[len(first.stem) :] for p in near if p.suffix.lower() in SUFFIXES]
    if not fitting:
        raise UserError(f'data: no label map of {first} in {folder}')
    return suffixes[0], min(fitting, key=len)


def _named(images: Path, suffix: str) -> list[str]:
    """Names of the images without suffix."""
    return [p.relative_to(images).as_posix().removesuffix(suffix) for p in images_in(images)]


def _settings(folders: tuple[Path, Path], suffixes: tuple[str, str]) -> dict[str, Any]:
    images, labels = map(str, folders)
    return dict(
        data_prefix=dict(img_path=images, seg_map_path=labels),
        img_suffix=suffixes[0],
        seg_map_suffix=suffixes[1],
    )


def _names(root: Path, classes: Sequence[str] | None, values: set[int]) -> list[str]:
    listed = root / 'classes.txt'
    if not classes and listed.is_file():
        with user_errors(f'data: cannot read {listed}'):
            classes = [n.strip() for n in listed.read_text(encoding='utf-8').splitlines() if n]
    if not classes:
        shown = ', '.join(map(str, sorted(values)[:8]))
        raise UserError(
            f'data: label maps have no names of classes: name the values {shown} in order with '
            f'--classes, or one per line in {listed}'
        )
    return list(classes)

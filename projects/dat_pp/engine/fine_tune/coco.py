"""Recognize annotations in COCO's format, for detection and instance segmentation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, user_errors
from .data import LABELS, Data, Subset, with_split


def coco_boxes(paths: Sequence[Path], masks: bool = False) -> Data:
    """COCO annotation files and their images: a folder that has both, or files and folders.

    The classes are the categories with annotations, in the order of the file, which is how mmdet
    numbers them.

    Args:
        paths: A folder; or a file for training, one for validation or none, and folders of images.
        masks: Whether every annotation needs a mask.

    Raises:
        UserError: The files are not found or not in COCO's format.
    """
    files, roots = (
        [p for p in paths if p.is_file()],
        [p for p in paths if p.is_dir()],
    )
    train_file, val_file = _annotation_files(files, roots)
    content = _read_coco(train_file, masks)
    used = {each.get('category_id') for each in content['annotations']}
    names = [each['name'] for each in content['categories'] if each['id'] in used]
    unused = [each['name'] for each in content['categories'] if each['id'] not in used]
    notes = [f'categories without annotations, left out: {", ".join(unused)}'] if unused else []
    folder = _image_folder(content, train_file, roots)
    if val_file:
        other = _read_coco(val_file, masks)
        order = [each['name'] for each in other['categories'] if each['name'] in names]
        if order != names:
            raise UserError(
                f'data: {val_file} lists other categories, or in another order, than {train_file}'
            )
        other_folder = _image_folder(other, val_file, roots[::-1])
        return Data(
            names,
            Subset(len(content['images']), dict(_settings(folder), ann_file=str(train_file))),
            Subset(len(other['images']), dict(_settings(other_folder), ann_file=str(val_file))),
            notes=notes,
        )
    labels: dict[Any, set[int]] = {image['id']: set() for image in content['images']}
    for each in content['annotations']:
        if each.get('image_id') in labels:
            labels[each['image_id']].add(each.get('category_id'))

    def subset(part: Sequence[int]) -> str:
        images = [content['images'][index] for index in part]
        chosen = {image['id'] for image in images}
        annotations = [e for e in content['annotations'] if e.get('image_id') in chosen]
        return json.dumps({**content, 'images': images, 'annotations': annotations})

    return with_split(
        names,
        [sorted(each) for each in labels.values()],
        subset,
        _settings(folder),
        suffix='.json',
        notes=notes,
    )


def coco_masks(paths: Sequence[Path]) -> Data:
    """As :func:`coco_boxes`, with a mask for every box."""
    return coco_boxes(paths, masks=True)


def _settings(folder: Path) -> dict[str, Any]:
    return dict(data_root=str(folder), data_prefix=dict(img=''))


def _annotation_files(files: Sequence[Path], roots: Sequence[Path]) -> tuple[Path, Path | None]:
    """Annotation files for training and validation: those given, or else found in a folder."""
    if len(files) > 2:
        raise UserError('data: expected annotation files for training and validation, not more')
    if files:
        return files[0], files[1] if len(files) == 2 else None
    root = roots[0]
    found = sorted({p for pattern in ('*.json', '*/*.json') for p in root.glob(pattern)})
    found = [p for p in found if p.name.startswith('instances_')] or found
    if not found:
        raise UserError(f'data: no annotation file (*.json) in {root}; expected COCO annotations')
    by_name: dict[str, list[Path]] = {}
    for path in found:
        text = path.relative_to(root).as_posix().lower()
        role = next((name for name in ('train', 'val', 'test') if name in text), 'all')
        by_name.setdefault(role, []).append(path)
    train = by_name.get('train') or by_name.get('all') or found
    val = by_name.get('val') or by_name.get('test') or []
    for some, split_name in ((train, 'training'), (val, 'validation')):
        if len(some) > 1:
            names = ', '.join(str(path) for path in some[:3])
            raise UserError(f'data: several annotation files for {split_name}: {names}; name one')
    return train[0], val[0] if val and val != train else None


def _read_coco(path: Path, masks: bool) -> dict:
    with user_errors(f'data: cannot read {path}'):
        content = json.loads(path.read_bytes())
    for name in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise UserError(f"data: {path} has no list '{name}'; expected COCO annotations")
        if not content[name]:
            raise UserError(f"data: {path}: the list '{name}' is empty")
    with user_errors(f'data: {path} is not in the format of COCO; missing'):
        names = [category['name'] for category in content['categories']]
        _ = [category['id'] for category in content['categories']]
        _ = [(image['id'], image['file_name']) for image in content['images']]
    if len(set(names)) < len(names):
        raise UserError(f'data: {path}: two categories have the same name')
    if masks and not all(each.get('segmentation') for each in content['annotations']):
        raise UserError(f'data: {path} has boxes without masks; use the task detection')
    return content


def _image_folder(content: dict, file: Path, roots: Sequence[Path]) -> Path:
    """The folder in which the images of an annotation file are."""
    name = content['images'][0]['file_name']
    near = [*roots, file.parent, *([file.parent.parent] if file.parent.name in LABELS else [])]
    folders = [f for root in near for f in (root, *sorted(p for p in root.glob('*/')))]
    folders += [f for root in near for f in sorted(root.glob('images/*/'))]
    # Images of the two subsets may have the same names: instances_val.json means val/.
    named = [folder for folder in folders if folder == file.parent or folder.name in file.name]
    for folder in (*named, *folders):
        if (folder / name).is_file():
            return folder
    raise UserError(f'data: the images of {file} are not found: {name}; name their folder as well')

"""Check an annotation file in COCO's format without reading its images."""

import json
import os.path as osp
from collections.abc import Callable, Iterator, Sequence

MARGIN = 1  # pixels by which rounding may move a box or polygon over the border


def coco_problems(
    path: str, classes: Sequence[str], add: Callable[[str, str], None]
) -> tuple[int, list[str]]:
    """Call ``add(problem, where)`` for each problem; return the number of annotations and notes.

    Raises:
        ValueError: The file is not in COCO's format.
    """
    with open(path, 'rb') as file:
        content = json.load(file)
    for name in ('images', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ValueError(f"it has no list '{name}'")
    name, annotations = osp.basename(path), content.get('annotations') or []
    _check_ids(content, annotations, name, add)
    notes = _check_categories(content['categories'], classes, add)

    images = {image.get('id'): image for image in content['images']}
    categories = {category.get('id') for category in content['categories']}
    tiny = 0
    for annotation in annotations:
        where = f'annotation {annotation.get("id")} in {name}'
        image = images.get(annotation.get('image_id'))
        if image is None:
            add('annotations of an unknown image', where)
            continue
        if annotation.get('category_id') not in categories:
            add('annotations of an unknown category', where)
        for problem in _annotation_problems(annotation, image):
            add(problem, f'{where}, image {image.get("file_name", image.get("id"))}')
        box = annotation.get('bbox') or ()
        tiny += len(box) == 4 and min(box[2:]) < 1
    if tiny:
        notes.append(f'{tiny:,} boxes less than a pixel wide or high, which mmdet leaves out')
    return len(annotations), notes


def _check_ids(content: dict, annotations: list[dict], name: str, add: Callable) -> None:
    for what, entries in (('images', content['images']), ('annotations', annotations)):
        seen = set()
        for entry in entries:
            if entry.get('id') in seen:
                add(f'{what} with the same id', f'{entry.get("id")} in {name}')
            seen.add(entry.get('id'))
    for image in content['images']:
        if not all(isinstance(image.get(k), int) and image[k] > 0 for k in ('width', 'height')):
            add('images without a size', f'image {image.get("id")} in {name}')


def _check_categories(categories: list[dict], classes: Sequence[str], add: Callable) -> list[str]:
    names = {category.get('name') for category in categories}
    for missing in sorted(set(classes) - names):
        add('classes without a category in the annotation file', missing)
    others = names - set(classes)
    return [f'{len(others)} categories are not among the classes'] if others else []


def _annotation_problems(annotation: dict, image: dict) -> Iterator[str]:
    width, height = image.get('width') or 0, image.get('height') or 0
    box = annotation.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or 'area' not in annotation:
        yield 'annotations without a box or area'
    else:
        x, y, w, h = box
        if not _inside([x, x + w], width) or not _inside([y, y + h], height) or min(w, h) < 0:
            yield 'boxes outside the image'
    mask = annotation.get('segmentation')
    if isinstance(mask, dict):
        if list(mask.get('size', ())) != [height, width]:
            yield 'masks of another size than the image'
        return
    for polygon in mask or ():
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            yield 'invalid polygons'
        elif not _inside(polygon[::2], width) or not _inside(polygon[1::2], height):
            yield 'polygons outside the image'


def _inside(values: Sequence[float], end: float) -> bool:
    # Written so that a NaN is outside.
    return min(values) >= -MARGIN and max(values) <= end + MARGIN

"""Small datasets in the layouts that the configs expect, as users keep them under ``data/``."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

# The two classes that have samples: category ids of COCO, labels of ADE20K.
COCO_IDS = (1, 18)
ADE_LABELS = (1, 150)
COLORS = ((200, 60, 40), (40, 90, 200))
SHORT = {'training': 'train', 'validation': 'val'}


def draw_image(index: int, size: tuple[int, int], seed: int) -> tuple[np.ndarray, tuple]:
    """Draw noise with a colored rectangle, whose color is that of the class (index modulo 2).

    Returns the image of ``size`` (width, height) and the rectangle (left, top, width, height).
    """
    width, height = size
    rng = np.random.default_rng((seed, index))
    image = rng.integers(90, 150, (height, width, 3), dtype=np.uint8)
    box = (
        int(rng.integers(0, width // 4)), int(rng.integers(0, height // 4)),
        width // 2, height // 2,
    )  # fmt: skip
    left, top, wide, high = box
    image[top : top + high, left : left + wide] = COLORS[index % 2]
    return image, box


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format=None if path.suffix != '.JPEG' else 'JPEG')


def write_imagenet(
    root: Path, size: tuple[int, int], train: int = 2, val: int = 2, classes: int = 1000
) -> None:
    """``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``; most class folders are empty."""
    for seed, (split, count) in enumerate((('train', train), ('val', val))):
        for label in range(classes):
            (root / split / f'n{label:08d}').mkdir(parents=True)
        for index in range(count):
            image, _ = draw_image(index, size, seed)
            save(image, root / split / f'n{index % 2:08d}' / f'{split}_{index}.JPEG')


def write_coco(root: Path, size: tuple[int, int], train: int = 2, val: int = 2) -> None:
    """``train2017/*.jpg``, ``val2017/*.jpg`` and ``annotations/instances_*2017.json``."""
    from mmdet.datasets import CocoDataset

    width, height = size
    # Category ids have gaps: the dog is id 18 but the 16th class.
    names = CocoDataset.METAINFO['classes']
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    ids = [number for number in range(1, 91) if number not in gaps]
    categories = [dict(id=number, name=name) for number, name in zip(ids, names, strict=True)]
    for seed, (split, count) in enumerate((('train2017', train), ('val2017', val))):
        images, annotations = [], []
        for index in range(count):
            image, (left, top, wide, high) = draw_image(index, size, seed)
            name = f'{index + 1:012d}.jpg'
            save(image, root / split / name)
            right, bottom = left + wide, top + high
            images.append(dict(id=index + 1, file_name=name, width=width, height=height))
            annotations.append(
                dict(
                    id=index + 1,
                    image_id=index + 1,
                    category_id=COCO_IDS[index % 2],
                    bbox=[left, top, wide, high],
                    area=wide * high,
                    iscrowd=0,
                    segmentation=[[left, top, right, top, right, bottom, left, bottom]],
                )
            )
        (root / 'annotations').mkdir(exist_ok=True)
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def write_ade20k(root: Path, size: tuple[int, int], train: int = 2, val: int = 2) -> None:
    """``ADEChallengeData2016/{images,annotations}/{training,validation}``; label 0 is ignored."""
    for seed, (split, count) in enumerate((('training', train), ('validation', val))):
        for index in range(count):
            image, (left, top, wide, high) = draw_image(index, size, seed)
            labels = np.full(image.shape[:2], 3, np.uint8)
            labels[:2] = 0
            labels[top : top + high, left : left + wide] = ADE_LABELS[index % 2]
            name = f'ADE_{SHORT[split]}_{index + 1:08d}'
            folder = root / 'ADEChallengeData2016'
            save(image, folder / 'images' / split / f'{name}.jpg')
            save(labels, folder / 'annotations' / split / f'{name}.png')


WRITERS = {'imagenet': write_imagenet, 'coco': write_coco, 'ade': write_ade20k}

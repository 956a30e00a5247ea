"""Write scikit-learn's handwritten digits as small datasets for three tasks.

    OUT_DIR/imagenet/{train,val}/<class>/*.png     one digit per image
    OUT_DIR/coco/{train,val}/*.jpg                 scenes; annotations/instances_{train,val}.json
    OUT_DIR/ade20k/{images,annotations}/{training,validation}/    the same scenes with label maps
    OUT_DIR/digits.json                            the settings, and the version of the datasets

Classification images show the digits as they are, enlarged, light on dark. For training, each digit
is also drawn on a photograph, as in the scenes, so that the features transfer.

A scene is a crop of one of scikit-learn's two photographs with a few digits on it, of varying size,
slant, position and color. A digit may cover a little of an earlier one: masks, boxes and label maps
hold only what stays visible, and agree to the pixel. Label maps: 0 is background, 1 + d is digit d.
Neither the digits nor the parts of the photographs used for validation occur in training.

The same seed gives the same bytes (with the same OpenCV); nothing is downloaded.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as rle
from sklearn.datasets import load_digits, load_sample_images

VERSION = 2  # raise it when what is written changes
SEED = 0
CLASSES = tuple(str(digit) for digit in range(10))
SPLITS = {'train': 'training', 'val': 'validation'}  # COCO's and ADE20K's names
SCENES = {'train': 2000, 'val': 150}

VAL_SHARE = 0.2  # fraction of the digits of each class
VAL_ROWS = 0.35  # fraction of each photograph, at the bottom; training sees only the rest
MARGIN = 2  # pixels of padding around the 8 x 8 pixels of a digit in a classification image
IMAGE_SIZE = 48  # of a classification image
SCENE_SIZE = 96
IMAGE_DIGIT_HEIGHT = (26, 40)  # pixels that the eight rows of a digit are enlarged to
SCENE_DIGIT_HEIGHT = (24, 48)
DIGITS_PER_SCENE = (2, 4)
PHOTO_BRIGHTNESS = 0.5
CONTRAST = (80, 160)  # by how much more luminance a digit has than what it covers
TINT = 40  # maximum distance of a digit's color from gray, per channel
MIN_VISIBLE = 0.93  # fraction of a digit that later ones must leave visible
STROKE = (0.25, 0.55)  # ink at which a pixel starts to be opaque, and is fully opaque
LUMA = np.array([0.114, 0.587, 0.299])  # of blue, green, red

Scene = tuple[np.ndarray, list[tuple[int, np.ndarray]]]  # image (BGR); class and mask per digit


class Part(NamedTuple):
    """What a split may show."""

    numbers: np.ndarray  # of its digits in scikit-learn's dataset
    inks: np.ndarray  # (N, 8, 8) in [0, 1]
    labels: np.ndarray  # (N,)
    photos: list[np.ndarray]  # rows of the photographs, BGR


def load_parts(seed: int = SEED) -> dict[str, Part]:
    """Load digits and photographs, split into training and validation; no class is favored."""
    digits = load_digits()
    inks = (digits.images / 16).astype(np.float32)
    rng = np.random.default_rng(seed)
    numbers: dict[str, list[np.ndarray]] = {'train': [], 'val': []}
    for digit in range(len(CLASSES)):
        shuffled = rng.permutation(np.flatnonzero(digits.target == digit))
        cut = round(len(shuffled) * VAL_SHARE)
        numbers['val'].append(shuffled[:cut])
        numbers['train'].append(shuffled[cut:])
    photos: dict[str, list[np.ndarray]] = {'train': [], 'val': []}
    for photo in load_sample_images().images:
        cut = round(len(photo) * (1 - VAL_ROWS))
        photos['train'].append(photo[:cut, :, ::-1])
        photos['val'].append(photo[cut:, :, ::-1])
    chosen = {split: np.sort(np.concatenate(numbers[split])) for split in SPLITS}
    return {s: Part(i, inks[i], digits.target[i], photos[s]) for s, i in chosen.items()}


def draw_glyph(ink: np.ndarray, height: float, aspect: float, degrees: float) -> np.ndarray:
    """Enlarge, stretch and rotate a digit: its opacity in [0, 1], cropped to what is not empty."""
    side = int(1.6 * height)  # room for the widest digit, rotated
    rotation = cv2.getRotationMatrix2D((0, 0), degrees, height / 8)[:, :2] @ np.diag([aspect, 1])
    center = np.full(2, side / 2) - rotation @ np.full(2, 3.5)
    smooth = cv2.warpAffine(ink, np.c_[rotation, center], (side, side), flags=cv2.INTER_CUBIC)
    low, high = STROKE
    alpha = np.clip((smooth - low) / (high - low), 0, 1)
    left, top, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    return alpha[top : top + height, left : left + width]


def crop_photo(photos: list[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(size // 2, min(*photo.shape[:2], 3 * size // 2) + 1))
    top, left = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
    crop = photo[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    return crop.astype(np.float32) * PHOTO_BRIGHTNESS


def pick_color(under: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose a color that is lighter, by CONTRAST, than the pixels `under` it."""
    tint = rng.uniform(-TINT, TINT, 3)
    luminance = (under @ LUMA).mean() + rng.uniform(*CONTRAST)
    return np.clip(luminance + tint - tint @ LUMA, 0, 255)


def draw_scene(
    part: Part, chosen: Iterable[int], size: int, heights: tuple[int, int], rng: np.random.Generator
) -> Scene:
    """Draw digits on a crop of a photograph, except those for which there is no room."""
    image = crop_photo(part.photos, size, rng)
    masks: list[tuple[np.ndarray, int]] = []  # visible pixels, and the area of the whole digit
    kept = []
    for index in chosen:
        height = np.exp(rng.uniform(*np.log(heights)))
        glyph = draw_glyph(part.inks[index], height, rng.uniform(0.85, 1.15), rng.uniform(-12, 12))
        for _ in range(50):
            top, left = (int(rng.integers(size - length + 1)) for length in glyph.shape)
            place = slice(top, top + glyph.shape[0]), slice(left, left + glyph.shape[1])
            solid = np.zeros(image.shape[:2], bool)
            solid[place] = glyph > 0.5
            if all((mask & ~solid).sum() >= MIN_VISIBLE * area for mask, area in masks):
                break
        else:
            continue
        masks = [(mask & ~solid, area) for mask, area in masks] + [(solid, solid.sum())]
        kept.append(int(part.labels[index]))
        alpha = glyph[..., None] * rng.uniform(0.9, 1)
        image[place] = image[place] * (1 - alpha) + pick_color(image[solid], rng) * alpha
    image += rng.standard_normal(image.shape, np.float32) * rng.uniform(0, 5)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return image, [(label, mask) for label, (mask, _) in zip(kept, masks)]


def enlarge(ink: np.ndarray) -> np.ndarray:
    """Enlarge a digit as it is, light on dark."""
    shape = (IMAGE_SIZE, IMAGE_SIZE)
    large = cv2.resize(np.pad(ink, MARGIN), shape, interpolation=cv2.INTER_CUBIC)
    return np.rint(np.clip(large, 0, 1) * 255).astype(np.uint8)


def write_image(path: Path, image: np.ndarray, params: tuple[int, ...] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image, list(params)):
        raise OSError(f'cannot write {path}')


def write_imagenet(folder: Path, part: Part, rng: np.random.Generator) -> None:
    """Write an image per digit, and for training another one on a photograph."""
    for index, (number, ink, label) in enumerate(zip(part.numbers, part.inks, part.labels)):
        write_image(folder / str(label) / f'{number:04d}.png', enlarge(ink))
        if folder.name == 'train':
            drawn, _ = draw_scene(part, [index], IMAGE_SIZE, IMAGE_DIGIT_HEIGHT, rng)
            write_image(folder / str(label) / f'{number:04d}_drawn.png', drawn)


def write_scenes(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write the same scenes in the layouts of COCO and ADE20K."""
    images: list[dict] = []
    annotations: list[dict] = []
    for number, (image, instances) in enumerate(scenes):
        stem = f'{split}_{number:05d}'
        label_map = np.zeros(image.shape[:2], np.uint8)
        for label, mask in instances:
            label_map[mask] = 1 + label
            encoded = rle.encode(np.asfortranarray(mask, np.uint8))
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number + 1,
                    iscrowd=0,
                    category_id=1 + label,
                    area=int(mask.sum()),
                    bbox=rle.toBbox(encoded).tolist(),
                    # RLE, since polygons cannot have holes.
                    segmentation=dict(encoded, counts=encoded['counts'].decode()),
                )
            )
        height, width = label_map.shape
        images.append(dict(id=number + 1, file_name=f'{stem}.jpg', height=height, width=width))
        for folder in (root / 'coco' / split, root / 'ade20k' / 'images' / SPLITS[split]):
            write_image(folder / f'{stem}.jpg', image, (cv2.IMWRITE_JPEG_QUALITY, 95))
        write_image(root / 'ade20k' / 'annotations' / SPLITS[split] / f'{stem}.png', label_map)
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    path = root / 'coco' / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def make_scenes(part: Part, count: int, rng: np.random.Generator) -> Iterator[Scene]:
    """Draw `count` scenes that use all digits about equally often."""
    queue = np.array([], int)
    for _ in range(count):
        wanted = int(rng.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1))
        while len(queue) < wanted:
            queue = np.concatenate([queue, rng.permutation(len(part.labels))])
        chosen, queue = queue[:wanted], queue[wanted:]
        yield draw_scene(part, chosen, SCENE_SIZE, SCENE_DIGIT_HEIGHT, rng)


def write_all(root: Path, scenes: dict[str, int]) -> None:
    for number, (split, part) in enumerate(load_parts().items()):
        rngs = [np.random.default_rng([SEED, number, use]) for use in range(2)]
        write_imagenet(root / 'imagenet' / split, part, rngs[0])
        write_scenes(root, split, make_scenes(part, scenes[split], rngs[1]))


def convert(out_dir: Path, scenes: dict[str, int] = SCENES) -> bool:
    """Write the datasets; returns False if they exist already.

    `out_dir` appears only once it is complete. Datasets of another version are replaced.

    Raises:
        ValueError: `out_dir` is anything else; nothing is written.
    """
    manifest = dict(version=VERSION, seed=SEED, scenes=scenes)
    if out_dir.exists():
        try:
            found = json.loads((out_dir / 'digits.json').read_text())
        except (OSError, ValueError):
            raise ValueError(
                f'{out_dir} exists and is no digits dataset (no readable digits.json in it): '
                'nothing written, remove it first'
            ) from None
        if found == manifest:
            return False
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that a rename makes it visible at once.
    partial = out_dir.with_name(f'.{out_dir.name}.{os.getpid()}.partial')
    try:
        write_all(partial, scenes)
        (partial / 'digits.json').write_text(json.dumps(manifest))
        if out_dir.exists():
            shutil.rmtree(out_dir)
        partial.rename(out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True

"""Write scikit-learn's handwritten digits as small datasets for three tasks.

    python -m demo.digits.data data/digits

    OUT_DIR/digits.json                            settings: version, seed, number of scenes
    OUT_DIR/imagenet/{train,val}/<class>/*.png     a digit each, listed in meta/{train,val}.txt
    OUT_DIR/coco/{train,val}/*.jpg                 scenes; annotations/instances_{train,val}.json
    OUT_DIR/ade20k/{images,annotations}/{training,validation}/    the same scenes with label maps

Classification images show the digits as they are, enlarged, light on dark. For training, each digit
is also drawn on a photograph, as in the scenes, so that the features transfer.

A scene is a crop of one of scikit-learn's two photographs with a few digits on it, of varying size,
slant, position and color. A digit may cover a little of an earlier one: masks, boxes and label maps
hold only what stays visible, and agree to the pixel. Label maps: 0 is background, 1 + d is digit d.
Neither the digits nor the parts of the photographs used for validation occur in training.

The same seed gives the same bytes (with the same OpenCV); nothing is downloaded.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

VERSION = 1  # to be raised when what is written changes
CLASSES = tuple(str(digit) for digit in range(10))
MANIFEST = 'digits.json'
SPLITS = {'train': 'training', 'val': 'validation'}  # COCO's and ADE20K's names

VAL_SHARE = 0.2  # fraction of the digits of each class
VAL_ROWS = 0.35  # fraction of each photograph, at the bottom; training sees only the rest
MARGIN = 2  # pixels of padding around the 8 x 8 pixels of a digit in a classification image
IMAGE_SIZE = 48  # of a classification image
SCENE_SIZE = 96
IMAGE_DIGIT_HEIGHT = (26, 40)  # pixels that the eight rows of a digit are enlarged to
SCENE_DIGIT_HEIGHT = (24, 48)
DIGITS_PER_SCENE = (2, 4)
DRAWN_COPIES = 1  # of each training digit on a photograph, for classification
PHOTO_BRIGHTNESS = 0.5
CONTRAST = (80, 160)  # by how much more luminance a digit has than what it covers
TINT = 40  # maximum distance of a digit's color from gray, per channel
MIN_VISIBLE = 0.93  # fraction of a digit that later ones must leave visible
STROKE = (0.25, 0.55)  # ink at which a pixel starts to be opaque, and is fully opaque
LUMA = np.array([0.114, 0.587, 0.299])  # of blue, green, red


@dataclass
class Instance:
    """A digit in a scene: its class and the mask of its visible pixels."""

    label: int
    mask: np.ndarray


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Load the ink of all digits, (1797, 8, 8) in [0, 1], and their classes."""
    from sklearn.datasets import load_digits as load

    data = load()
    return (data.images / 16).astype(np.float32), data.target


def split_digits(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Choose the indices of the digits of each split, the same fraction of every class."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {'train': [], 'val': []}
    for digit in range(len(CLASSES)):
        indices = rng.permutation(np.flatnonzero(labels == digit))
        cut = round(len(indices) * VAL_SHARE)
        parts['val'].append(indices[:cut])
        parts['train'].append(indices[cut:])
    return {split: np.sort(np.concatenate(indices)) for split, indices in parts.items()}


def split_photos() -> dict[str, list[np.ndarray]]:
    """Load the rows of each photograph (BGR) that a split may show."""
    from sklearn.datasets import load_sample_images

    photos = [photo[..., ::-1] for photo in load_sample_images().images]
    cuts = [round(len(photo) * (1 - VAL_ROWS)) for photo in photos]
    return {
        'train': [photo[:cut] for photo, cut in zip(photos, cuts)],
        'val': [photo[cut:] for photo, cut in zip(photos, cuts)],
    }


def draw_glyph(ink: np.ndarray, height: float, aspect: float, degrees: float) -> np.ndarray:
    """Enlarge, stretch and rotate a digit: its opacity in [0, 1], cropped to what is not empty."""
    side = int(1.6 * height)  # room for the widest digit, rotated
    rotation = cv2.getRotationMatrix2D((0, 0), degrees, height / 8)[:, :2] @ np.diag([aspect, 1])
    center = np.full(2, side / 2) - rotation @ np.full(2, 3.5)
    smooth = cv2.warpAffine(ink, np.c_[rotation, center], (side, side), flags=cv2.INTER_CUBIC)
    low, high = STROKE
    alpha = np.clip((smooth - low) / (high - low), 0, 1)
    (top, bottom), (left, right) = extent(alpha > 0)
    return alpha[top:bottom, left:right]


def extent(mask: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Find the rows and columns that a mask occupies, as half-open ranges."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


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
    photos: list[np.ndarray],
    inks: list[np.ndarray],
    labels: list[int],
    rng: np.random.Generator,
    size: int = SCENE_SIZE,
    heights: tuple[int, int] = SCENE_DIGIT_HEIGHT,
) -> tuple[np.ndarray, list[Instance]]:
    """Draw digits on a crop of a photograph, except those for which there is no room."""
    image = crop_photo(photos, size, rng)
    masks: list[tuple[np.ndarray, int]] = []  # visible pixels, and the area of the whole digit
    kept = []
    for ink, label in zip(inks, labels):
        height = np.exp(rng.uniform(*np.log(heights)))
        glyph = draw_glyph(ink, height, rng.uniform(0.85, 1.15), rng.uniform(-12, 12))
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
        kept.append(label)
        alpha = glyph[..., None] * rng.uniform(0.9, 1)
        image[place] = image[place] * (1 - alpha) + pick_color(image[solid], rng) * alpha
    image += rng.standard_normal(image.shape, np.float32) * rng.uniform(0, 5)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return image, [Instance(label, mask) for label, (mask, _) in zip(kept, masks)]


def encode_mask(mask: np.ndarray) -> dict:
    """Encode a mask as COCO's uncompressed RLE (column-major): polygons cannot have holes."""
    flat = mask.ravel(order='F')
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.r_[0, edges, flat.size]).tolist()
    return dict(size=list(mask.shape), counts=[0, *counts] if flat[0] else counts)


def write_image(path: Path, image: np.ndarray, params: tuple[int, ...] = ()) -> None:
    if not cv2.imwrite(str(path), image, list(params)):
        raise OSError(f'cannot write {path}')


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n')


def enlarge(ink: np.ndarray) -> np.ndarray:
    """Enlarge a digit as it is, light on dark."""
    shape = (IMAGE_SIZE, IMAGE_SIZE)
    large = cv2.resize(np.pad(ink, MARGIN), shape, interpolation=cv2.INTER_CUBIC)
    return np.rint(np.clip(large, 0, 1) * 255).astype(np.uint8)


def write_imagenet(
    root: Path,
    split: str,
    indices: np.ndarray,
    inks: np.ndarray,
    labels: np.ndarray,
    photos: list[np.ndarray],
    seed: list[int],
) -> None:
    rng = np.random.default_rng(seed)
    listed = []
    for index in indices:
        label = int(labels[index])
        images = {f'{index:04d}': enlarge(inks[index])}
        for copy in range(DRAWN_COPIES if split == 'train' else 0):
            images[f'{index:04d}_drawn{copy}'], _ = draw_scene(
                photos, [inks[index]], [label], rng, IMAGE_SIZE, IMAGE_DIGIT_HEIGHT
            )
        for stem, image in images.items():
            path = root / split / str(label) / f'{stem}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, image)
            listed.append(f'{label}/{path.name} {label}\n')
    meta = root / 'meta'
    meta.mkdir(exist_ok=True)
    (meta / f'{split}.txt').write_text(''.join(listed))


def write_scenes(coco_root: Path, ade_root: Path, split: str, scenes: list) -> None:
    """Write the same scenes in the layouts of COCO and ADE20K."""
    folders = (
        coco_root / split,
        ade_root / 'images' / SPLITS[split],
        ade_root / 'annotations' / SPLITS[split],
        coco_root / 'annotations',
    )
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    coco = dict(
        images=[],
        annotations=[],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
    )
    for number, (image, instances) in enumerate(scenes):
        stem = f'{split}_{number:05d}'
        label_map = np.zeros(image.shape[:2], np.uint8)
        for instance in instances:
            label_map[instance.mask] = 1 + instance.label
            (top, bottom), (left, right) = extent(instance.mask)
            coco['annotations'].append(
                dict(
                    id=len(coco['annotations']) + 1,
                    image_id=number + 1,
                    iscrowd=0,
                    category_id=1 + instance.label,
                    area=int(instance.mask.sum()),
                    bbox=[left, top, right - left, bottom - top],
                    segmentation=encode_mask(instance.mask),
                )
            )
        height, width = label_map.shape
        coco['images'].append(
            dict(id=number + 1, file_name=f'{stem}.jpg', height=height, width=width)
        )
        for folder in folders[:2]:
            write_image(folder / f'{stem}.jpg', image, (cv2.IMWRITE_JPEG_QUALITY, 95))
        write_image(folders[2] / f'{stem}.png', label_map)
    write_json(coco_root / 'annotations' / f'instances_{split}.json', coco)


def make_scenes(
    photos: list[np.ndarray],
    indices: np.ndarray,
    inks: np.ndarray,
    labels: np.ndarray,
    count: int,
    seed: list[int],
) -> list:
    """Draw `count` scenes that use all digits about equally often."""
    rng = np.random.default_rng(seed)
    queue: list[int] = []
    scenes = []
    for _ in range(count):
        wanted = int(rng.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1))
        while len(queue) < wanted:
            queue.extend(rng.permutation(indices))
        chosen, queue = queue[:wanted], queue[wanted:]
        scenes.append(
            draw_scene(photos, [inks[i] for i in chosen], [int(labels[i]) for i in chosen], rng)
        )
    return scenes


def digest(root: Path) -> str:
    """SHA-256 of the names and contents of all files in a folder."""
    total = hashlib.sha256()
    for path in sorted(path for path in root.rglob('*') if path.is_file()):
        total.update(f'{path.relative_to(root).as_posix()}\n'.encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def write_all(root: Path, seed: int, scenes: dict[str, int]) -> None:
    inks, labels = load_digits()
    photos = split_photos()
    for number, (split, indices) in enumerate(split_digits(labels, seed).items()):
        write_imagenet(
            root / 'imagenet', split, indices, inks, labels, photos[split], [seed, number, 0]
        )
        drawn = make_scenes(photos[split], indices, inks, labels, scenes[split], [seed, number, 1])
        write_scenes(root / 'coco', root / 'ade20k', split, drawn)


def check_target(out_dir: Path, wanted: dict) -> bool:
    """Whether the dataset exists already; raises ValueError if anything else does."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    try:
        found = json.loads((out_dir / MANIFEST).read_text())
    except (OSError, ValueError):
        raise ValueError(
            f'{out_dir} exists and is neither an empty folder nor a digits dataset (no readable '
            f'{MANIFEST} in it): nothing written, choose another OUT_DIR or remove it'
        ) from None
    other = [key for key, value in wanted.items() if found.get(key) != value]
    if other:
        raise ValueError(
            f'{out_dir} holds digits datasets with other settings ('
            + ', '.join(f'{key}: {found.get(key)}, not {wanted[key]}' for key in other)
            + '): nothing written, choose another OUT_DIR or remove it'
        )
    return True


def convert(
    out_dir: str | Path, seed: int = 0, train_scenes: int = 2000, val_scenes: int = 150
) -> bool:
    """Write the datasets; returns False if they exist already.

    `out_dir` appears only once it is complete. Raises ValueError, before anything is written, if it
    holds anything but the datasets asked for.
    """
    out_dir = Path(out_dir)
    scenes = dict(train=train_scenes, val=val_scenes)
    if seed < 0 or min(scenes.values()) < 1:
        raise ValueError(
            f'the seed must be at least 0 and each number of scenes at least 1, '
            f'not {seed} and {train_scenes}, {val_scenes}'
        )
    manifest = dict(version=VERSION, seed=seed, scenes=scenes)
    if check_target(out_dir, manifest):
        return False
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that a rename makes it visible at once.
    partial = out_dir.with_name(f'.{out_dir.name}.{os.getpid()}.partial')
    try:
        partial.mkdir()
        write_all(partial, seed, scenes)
        write_json(partial / MANIFEST, manifest)
        partial.rename(out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out_dir', metavar='OUT_DIR')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--train-scenes', type=int, default=2000)
    parser.add_argument('--val-scenes', type=int, default=150)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        written = convert(args.out_dir, args.seed, args.train_scenes, args.val_scenes)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'digits: {error}')
    print(f'{args.out_dir}: {"written" if written else "already complete"}')


if __name__ == '__main__':
    main()

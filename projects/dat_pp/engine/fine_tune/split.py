"""Set images aside for validation, with every class in its share."""

import random
from collections.abc import Collection, Sequence

VAL_SHARE = 0.2
SEED = 0


def split(classes: Sequence[Collection[int]]) -> tuple[list[int], list[int]]:
    """Split images into training and validation, stratified by class; the same each time.

    Classes are dealt out from the rarest to the most frequent. A class of a single image stays in
    training.

    Args:
        classes: The classes that occur in each image; an image may have none.

    Returns:
        Indices of the training images and of the validation images, both ascending.
    """
    order = list(range(len(classes)))
    random.Random(SEED).shuffle(order)
    found: dict[int, list[int]] = {}
    for image in order:
        for label in set(classes[image]) or {-1}:
            found.setdefault(label, []).append(image)
    in_val: dict[int, bool] = {}
    for label in sorted(found, key=lambda label: (len(found[label]), label)):
        images = found[label]
        wanted = max(round(VAL_SHARE * len(images)), int(len(images) > 1))
        wanted -= sum(in_val.get(image, False) for image in images)
        for image in images:
            if image not in in_val:
                in_val[image] = wanted > 0
                wanted -= 1
    train, val = ([i for i in sorted(order) if in_val[i] is side] for side in (False, True))
    return train, val

"""Whether a model's heads expect as many classes as a data set has."""

import re
from collections.abc import Iterator
from typing import Any

from .errors import UserError


def check_class_count(model: dict, dataset: Any, key: str) -> None:
    """Every head that states a number of classes must state that of the data set."""
    classes = dataset.metainfo.get('classes')
    if not isinstance(classes, list | tuple):
        return
    # Panoptic data: a box head knows the things only.
    right = {len(classes), len(dataset.metainfo.get('thing_classes', classes))}
    wrong = [head for head in stated_classes(model, 'model') if head[1] not in right]
    if wrong:
        heads = ', '.join(f'{name} is {count}' for name, count in wrong)
        fix = ' '.join(f'{as_option(name)}={len(classes)}' for name, _ in wrong if '+' not in name)
        raise UserError(
            f'{heads}, but {key} has {len(classes)} classes; '
            + (f'set --cfg-options {fix} or ' if fix else 'change the model or ')
            + f'list the right classes in {key}.metainfo.classes'
        )


def stated_classes(model: dict, key: str) -> Iterator[tuple[str, int]]:
    """Config keys of the heads' numbers of classes, and the numbers."""
    if 'language_model' in model or 'text_encoder' in model:  # classes come from a text
        return
    for name in ('head', 'bbox_head', 'mask_head', 'decode_head', 'auxiliary_head'):
        heads = model.get(name)
        for index, head in enumerate(heads if isinstance(heads, list | tuple) else [heads]):
            # STDC's second head finds edges.
            if isinstance(head, dict) and head.get('type') != 'STDCHead':
                part = f'[{index}]' if isinstance(heads, list | tuple) else ''
                if isinstance(head.get('num_classes'), int):
                    yield f'{key}.{name}{part}.num_classes', head['num_classes']
    panoptic = model.get('panoptic_head') or {}
    counts = [panoptic.get(f'num_{kind}_classes') for kind in ('things', 'stuff')]
    if all(isinstance(count, int) for count in counts):
        name = f'{key}.panoptic_head.num_things_classes + num_stuff_classes'
        yield name, sum(counts)
    for part in ('roi_head', 'module'):
        if isinstance(model.get(part), dict):
            yield from stated_classes(model[part], f'{key}.{part}')


def as_option(key: str) -> str:
    """``a.b[0].c`` as --cfg-options spells it: ``a.b.0.c``."""
    return re.sub(r'\[(\d+)\]', r'.\1', key)

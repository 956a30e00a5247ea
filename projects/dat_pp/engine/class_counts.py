"""Compare the numbers of classes of a model's heads with those of a dataset."""

import re
from collections.abc import Iterator
from typing import Any

from .config import class_name
from .errors import UserError


def check_class_count(model: dict, dataset: Any, key: str) -> None:
    """Check that each head with a number of classes has that of the dataset.

    Args:
        model: The model's config.
        dataset: The dataset; its ``metainfo`` may list classes.
        key: Config key of the dataset.

    Raises:
        UserError: A head has another number.
    """
    classes = dataset.metainfo.get('classes')
    if not isinstance(classes, list | tuple):
        return
    # Panoptic datasets: box heads know things only.
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
    """Yield config key and number of classes of each head."""
    if 'language_model' in model or 'text_encoder' in model:  # classes come from a prompt
        return
    for name in ('head', 'bbox_head', 'mask_head', 'decode_head', 'auxiliary_head'):
        heads = model.get(name)
        for index, head in enumerate(heads if isinstance(heads, list | tuple) else [heads]):
            # STDC's second head predicts edges.
            if isinstance(head, dict) and class_name(head.get('type')) != 'STDCHead':
                part = f'[{index}]' if isinstance(heads, list | tuple) else ''
                if isinstance(head.get('num_classes'), int):
                    yield f'{key}.{name}{part}.num_classes', head['num_classes']
    panoptic = model.get('panoptic_head') or {}
    things, stuff = panoptic.get('num_things_classes'), panoptic.get('num_stuff_classes')
    if isinstance(things, int) and isinstance(stuff, int):
        yield f'{key}.panoptic_head.num_things_classes + num_stuff_classes', things + stuff
    for part in ('roi_head', 'module'):
        if isinstance(model.get(part), dict):
            yield from stated_classes(model[part], f'{key}.{part}')


def as_option(key: str) -> str:
    """Spell the key ``a.b[0].c`` as --cfg-options does: ``a.b.0.c``."""
    return re.sub(r'\[(\d+)\]', r'.\1', key)

"""Load the weights of a checkpoint into a model, whichever task the checkpoint was trained for."""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .files import read_checkpoint
from .mismatch import Mismatch, compare, some
from .published import with_our_names

HEAD = 'head.fc.'


def load_pretrained(model: nn.Module, checkpoint: str, prefix: str | None = None) -> None:
    """Load a checkpoint into a ``DAT`` backbone or a ``DATClassifier``, and log what was loaded.

    The file may hold a classifier, a detector, a segmentor or a backbone alone, under our names or
    the published ones. Output norms are loaded only if the file's model has the same outputs: the
    backbone of a dense task does not take over the norm of a classifier. A classifier needs the
    weights of a head with as many classes. The mask token of ``SimMIMDAT`` is loaded only into
    another one. Position bias tables of another native resolution or window size are resized
    bicubically. Stages that the model does not have are ignored.

    Args:
        model: A ``DAT`` or one of its subclasses.
        checkpoint: Path or URL, see :func:`read_checkpoint`.
        prefix: Prefix of the backbone's names in the file; default: ``'backbone.'`` if there are
            such names, else none.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The package that reads it is not installed.
        ValueError: The file holds no weights, those of another variant or of another head; the
            message names the variant or the number of classes, and the first differences.
    """
    weights = with_our_names(read_checkpoint(checkpoint).weights)
    backbone, head, prefix = split_weights(weights, prefix)
    own = model.state_dict()
    classifier = f'{HEAD}weight' in own
    if classifier:
        _check_head(head, own[f'{HEAD}weight'].shape[0], checkpoint)
    fitted, fresh = fit(model, backbone, f'checkpoint {checkpoint}')
    model.load_state_dict(fitted | head if classifier else fitted, strict=False)

    used = {prefix + name for name in fitted} | (head.keys() if classifier else set())
    resized = [name for name in fitted if fitted[name] is not backbone[name]]
    part = 'classifier' if classifier else 'backbone'
    lines = [f'loaded {len(used)} of {len(own)} tensors of the {part} from {checkpoint}']
    if fresh:
        lines.append(f'left at their initial values: {", ".join(sorted(fresh))}')
    if resized:
        lines.append(f'position bias tables resized bicubically: {", ".join(resized)}')
    if ignored := weights.keys() - used:
        lines.append(f'not used from the checkpoint: {some(sorted(ignored), most=8)}')
    log('\n  '.join(lines))


def split_weights(
    weights: Mapping[str, Tensor], prefix: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Weights of the backbone, without its prefix, those of the classifier's head, and the prefix.

    Args:
        weights: Weights under our names, of a model for any task.
        prefix: See :func:`load_pretrained`.
    """
    if prefix is None:
        prefix = 'backbone.' if any(name.startswith('backbone.') for name in weights) else ''
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    head = {name: value for name, value in weights.items() if name.startswith(HEAD)}
    backbone = {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix) and name not in head
    }
    return backbone, head, prefix


def fit(
    model: nn.Module, weights: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], set[str]]:
    """Select and resize weights of a backbone for a model.

    Args:
        model: A ``DAT`` or one of its subclasses.
        weights: Weights of a backbone, see :func:`split_weights`.
        source: What an error message calls them.

    Returns:
        Weights for ``model.load_state_dict``, and the names that are left as they are.

    Raises:
        ValueError: They are weights of another variant.
    """
    fitted, fresh = _fit(model, weights)
    mismatch = _differences(model, fitted, fresh)
    if mismatch:
        arch: Any = model.arch
        variant = _variant(weights)
        raise ValueError(
            f'{source} does not fit a DAT with embed_dims {arch.embed_dims} and mixers '
            f'{arch.mixers}: {f"it holds a {variant}; " if variant else ""}{mismatch}'
        )
    return fitted, fresh


def _check_head(head: Mapping[str, Tensor], num_classes: int, checkpoint: str) -> None:
    if not {f'{HEAD}weight', f'{HEAD}bias'} <= head.keys():
        raise ValueError(
            f'checkpoint {checkpoint} has no classification head {HEAD}weight, {HEAD}bias: create '
            f'the model with num_classes=0, then call reset_classifier({num_classes})'
        )
    found = head[f'{HEAD}weight'].shape[0]
    if found != num_classes:
        raise ValueError(
            f'checkpoint {checkpoint} has a head of {found} classes, the model one of '
            f'{num_classes}: create the model with num_classes={found}, then call '
            f'reset_classifier({num_classes}) for a new head'
        )


def _fit(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """Weights for the stages that the model has, resized; and its names that they leave as is."""
    own = {name for name in model.state_dict() if not name.startswith(HEAD)}
    fresh: set[str] = set()
    unused: set[str] = set()
    for pattern in (r'norm\d\.', 'mask_token'):
        ours, theirs = ({n for n in names if re.match(pattern, n)} for names in (own, weights))
        if ours != theirs:
            fresh |= ours
            unused |= theirs
    fitted = {}
    for name, value in weights.items():
        stage = re.match(r'(stages|downsamples)\.(\d+)\.', name)
        if name not in unused and not (stage and int(stage[2]) >= len(getattr(model, stage[1]))):
            fitted[name] = value
    for name, module in model.named_modules():
        if hasattr(module, 'resize_tables'):
            module.resize_tables(fitted, f'{name}.')
    return fitted, fresh


def _differences(model: nn.Module, fitted: Mapping[str, Tensor], fresh: set[str]) -> Mismatch:
    own = model.state_dict()
    return compare({n: v for n, v in own.items() if n not in fresh and HEAD not in n}, fitted)


def _variant(weights: Mapping[str, Tensor]) -> str | None:
    """Name of the published variant whose backbone has these weights."""
    from ..models import DAT  # which imports this module
    from ..models.arch import ARCH_SETTINGS

    layer = 'ffn.fc1.weight'  # every block has one
    found = {name: value.shape[1] for name, value in weights.items() if name.endswith(layer)}
    for name, settings in ARCH_SETTINGS.items():
        expected = {
            f'stages.{i}.{j}.{layer}': settings['embed_dims'][i]
            for i, word in enumerate(settings['mixers'])
            for j in range(len(word))
        }
        if found == expected:  # fitting a model takes seconds
            with torch.device('meta'):
                model = DAT(name)
                meta = {key: value.to('meta') for key, value in weights.items()}
                if not _differences(model, *_fit(model, meta)):
                    return name
    return None


def log(text: str) -> None:
    """Log to mmengine's current logger in a program that has loaded it, else to ``dat_pp``."""
    mmengine_logging = sys.modules.get('mmengine.logging')
    if mmengine_logging is None:
        logging.getLogger('dat_pp').info(text)
    else:
        mmengine_logging.print_log(text, logger='current')

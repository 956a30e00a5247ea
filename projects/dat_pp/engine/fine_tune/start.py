"""Weights to start from: those of a file that fit the model of a project."""

from torch import Tensor, nn

from ...weights import fit, read_checkpoint, some, split_weights, with_our_names
from ..errors import user_errors


def starting_weights(model: nn.Module, path: str) -> tuple[dict[str, Tensor], list[str]]:
    """Select the weights of a checkpoint for a model with other heads.

    Args:
        model: A classifier, detector or segmentor with our backbone.
        path: A checkpoint of any task, or a published file.

    Returns:
        Weights for the model, and what was left out, for people to read.

    Raises:
        UserError: The file cannot be read, or its backbone does not fit.
    """
    with user_errors('--weights'):
        weights = with_our_names(read_checkpoint(path).weights)
        backbone, _, prefix = split_weights(weights)
        fitted, _ = fit(model.backbone, backbone, path)  # type: ignore[arg-type]
    own = model.state_dict()
    start = {f'backbone.{name}': value.clone() for name, value in fitted.items()}
    resized, unknown = [], []
    for name, value in weights.items():
        if name.removeprefix(prefix) in backbone and name.startswith(prefix):
            continue
        if name not in own:
            unknown.append(name.rpartition('.')[0])
        elif own[name].shape == value.shape:
            start[name] = value.clone()
        else:
            shapes = f'{tuple(value.shape)} instead of {tuple(own[name].shape)}'
            resized.append(f'{name} {shapes}')
    notes = [f'weights: {len(start)} of {len(own)} tensors of the model come from {path}']
    if resized:
        notes.append(f'weights of other numbers of classes, dropped: {some(resized, most=6)}')
    if unknown:
        parts = some(list(dict.fromkeys(unknown)), most=6)
        notes.append(f'weights of parts that this model does not have, dropped: {parts}')
    return start, notes

"""Checks of inputs that the operators share."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_queries(q: Tensor) -> None:
    """Raise a ValueError unless q is a floating-point (B, h, H, W, d); only B may be 0."""
    if q.dim() != 5 or 0 in q.shape[1:]:
        raise ValueError(f'q must be (B, h, H, W, d), only B may be 0; got {tuple(q.shape)}')
    check_floating(q=q)


def check_device(q: Tensor, **others: Tensor | None) -> None:
    """Raise a ValueError unless all tensors are on the device of q."""
    for name, x in others.items():
        if x is not None and x.device != q.device:
            raise ValueError(f'{name} must be on {q.device} as q is, got {x.device}')


def check_floating(**tensors: Tensor) -> None:
    """Raise a ValueError unless all tensors are floating-point."""
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise ValueError(f'{name} must be floating point, got {_name(x.dtype)}')


def check_dtype(dtypes: Sequence[torch.dtype], **tensors: Tensor) -> None:
    """Raise a ValueError unless every tensor has one of the dtypes."""
    for name, x in tensors.items():
        if x.dtype not in dtypes:
            choices = ' or '.join(_name(dtype) for dtype in dtypes)
            raise ValueError(f'{name} must be {choices}, got {_name(x.dtype)}')


def check_window(height: int, width: int, kernel: int, dilation: int) -> None:
    """Raise a ValueError unless a kernel x kernel window of this dilation fits into the map."""
    if dilation < 1:
        raise ValueError(f'dilation must be at least 1, got {dilation}')
    if min(height, width) < kernel * dilation:
        window = f'{kernel} x {kernel} window'
        if dilation > 1:
            window += f' with dilation {dilation}, which takes {kernel * dilation} pixels per axis'
        raise ValueError(f'a {height} x {width} map is smaller than the {window}')


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')

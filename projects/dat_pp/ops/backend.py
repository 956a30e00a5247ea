"""Choice of the implementation of an operator."""

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec('triton') is not None
if HAS_TRITON:
    from .kernels import INTERPRETED

ENVIRONMENT_VARIABLE = 'DAT_PP_BACKEND'
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TRITON_HEAD_SIZE = 128
"""The largest size of a head whose blocks fit a GPU's registers and shared memory."""


def triton_obstacle(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> str | None:
    """Why the Triton kernels cannot run on these queries, keys and values; None if they can."""
    if not HAS_TRITON:
        return 'triton is not installed'
    if not q.is_cuda and not INTERPRETED.value:
        return f'on {q.device.type} it needs TRITON_INTERPRET=1 before triton is imported'
    if q.dtype not in TRITON_DTYPES:
        return f'it has no {q.dtype}'.replace('torch.', '')
    if k.dtype != q.dtype or v.dtype != q.dtype:
        return f'q, k and v differ in dtype: {q.dtype}, {k.dtype}, {v.dtype}'.replace('torch.', '')
    if q.shape[-1] > TRITON_HEAD_SIZE:
        return f'a head of size {q.shape[-1]} is above {TRITON_HEAD_SIZE}'
    if dropout_p > 0:
        return 'it has no dropout of attention weights'
    return None


def select_backend(
    backends: dict[str, Callable],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    forced: str | None,
) -> Callable:
    """The implementation to run on these queries, keys and values.

    The argument ``forced`` decides, then ``DAT_PP_BACKEND``; else ``'triton'`` runs on GPUs where
    it can, and ``'blocked'`` elsewhere.

    Raises:
        ValueError: The forced name is none of ``backends``, or that one cannot run; says why.
    """
    obstacle = triton_obstacle(q, k, v, dropout_p)
    name = forced or os.environ.get(ENVIRONMENT_VARIABLE)
    if not name:
        return backends['triton' if q.is_cuda and obstacle is None else 'blocked']
    source = 'backend' if forced else ENVIRONMENT_VARIABLE
    if name not in backends:
        raise ValueError(f'{source} is {name!r}; choose one of {", ".join(sorted(backends))}')
    if name == 'triton' and obstacle is not None:
        raise ValueError(f"{source} is 'triton', which cannot run: {obstacle}")
    return backends[name]

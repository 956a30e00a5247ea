"""Choice of the implementation of an operator."""

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from . import native

HAS_TRITON = importlib.util.find_spec('triton') is not None
if HAS_TRITON:
    from .kernels import INTERPRETED

ENVIRONMENT_VARIABLE = 'DAT_PP_BACKEND'
FUSED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TRITON_HEAD_SIZE = 128
"""The largest size of a head whose blocks fit a GPU's registers and shared memory."""


def triton_obstacle(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> str | None:
    """Why the Triton kernels cannot run on these queries, keys and values; None if they can."""
    if not HAS_TRITON:
        return 'triton is not installed'
    if not q.is_cuda and not INTERPRETED.value:
        return f'on {q.device.type} it needs TRITON_INTERPRET=1 before triton is imported'
    return _fused_obstacle(q, k, v, dropout_p, TRITON_HEAD_SIZE)


def native_obstacle(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> str | None:
    """Why the compiled CPU kernels cannot run on these; None if they can."""
    if q.device.type != 'cpu':
        return f'it is for CPUs, not {q.device.type}'
    return _fused_obstacle(q, k, v, dropout_p, native.HEAD_SIZES[-1]) or native.obstacle()


def _fused_obstacle(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, head_size: int
) -> str | None:
    if q.dtype not in FUSED_DTYPES:
        return f'it has no {q.dtype}'.replace('torch.', '')
    if k.dtype != q.dtype or v.dtype != q.dtype:
        return f'q, k and v differ in dtype: {q.dtype}, {k.dtype}, {v.dtype}'.replace('torch.', '')
    if q.shape[-1] > head_size:
        return f'a head of size {q.shape[-1]} is above {head_size}'
    if dropout_p > 0:
        return 'it has no dropout of attention weights'
    return None


OBSTACLES = {'triton': triton_obstacle, 'native': native_obstacle}


def select_backend(
    backends: dict[str, Callable],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    forced: str | None,
    further: dict[str, str] | None = None,
) -> Callable:
    """The implementation to run on these queries, keys and values.

    The argument ``forced`` decides, then ``DAT_PP_BACKEND``; else ``'triton'`` runs on GPUs and
    ``'native'`` on CPUs where they can, and ``'blocked'`` elsewhere. ``further`` names backends
    that the operator itself cannot run, and why.

    Raises:
        ValueError: The forced name is none of ``backends``, or that one cannot run; says why.
    """

    def obstacle_to(name: str) -> str | None:
        found = (further or {}).get(name)
        return found or (OBSTACLES[name](q, k, v, dropout_p) if name in OBSTACLES else None)

    name = forced or os.environ.get(ENVIRONMENT_VARIABLE)
    if not name:
        name = 'triton' if q.is_cuda else 'native'
        return backends['blocked' if obstacle_to(name) else name]
    source = 'backend' if forced else ENVIRONMENT_VARIABLE
    if name not in backends:
        raise ValueError(f'{source} is {name!r}; choose one of {", ".join(sorted(backends))}')
    obstacle = obstacle_to(name)
    if obstacle:
        raise ValueError(f"{source} is '{name}', which cannot run: {obstacle}")
    return backends[name]

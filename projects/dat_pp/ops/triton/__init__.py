"""Backend ``triton``: when it can run, and what its kernels share.

Triton is imported by :func:`load`, not with this package.
"""

import functools
import importlib
import importlib.util
import os
import re
import sys

from torch import Tensor

from .. import custom_op
from ..context import constant_when_compiled

OLDEST = (3, 4)
"""Oldest version of Triton with which the kernels have been tried."""
MAX_HEAD_SIZE = 128
"""Largest head whose blocks fit the registers and shared memory of a GPU."""


@constant_when_compiled
def _missing() -> bool:
    return 'triton' not in sys.modules and importlib.util.find_spec('triton') is None


@constant_when_compiled
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, decided when they are first imported."""
    kernels = sys.modules.get(f'{__name__}.kernels')
    if kernels is not None:
        return kernels.INTERPRETED.value
    return os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'y', 'yes', 'on', 'true')


def unsupported_reason(q: Tensor, dropout_p: float) -> str | None:
    """Why Triton kernels cannot run on these queries; None if they can. Imports nothing."""
    if _missing():
        return 'triton is not installed'
    if not q.is_cuda and not interpreted():
        return f'on {q.device.type} it needs TRITON_INTERPRET=1 before its first use'
    return custom_op.unsupported_reason(q, dropout_p, MAX_HEAD_SIZE)


@functools.cache
def load(kernels: str) -> str | None:
    """Import Triton and the module of kernels; return why that is impossible, or None."""
    try:
        version = importlib.import_module('triton').__version__
        if tuple(map(int, re.findall(r'\d+', version)[:2])) < OLDEST:
            return f'triton {version} is older than {".".join(map(str, OLDEST))}'
        importlib.import_module(kernels)
    except Exception as error:  # whatever a version or a missing driver raises
        return f'triton cannot be imported: {error}'
    return None

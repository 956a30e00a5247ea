"""The attention operators of DAT++ as plain functions on tensors.

They need PyTorch only. Triton is imported and C++ compiled when a backend first runs.
"""

from .deformable import deformable_attention
from .dense import attention
from .dispatch import use_backend
from .neighborhood import neighborhood_attention

__all__ = ['attention', 'deformable_attention', 'neighborhood_attention', 'use_backend']

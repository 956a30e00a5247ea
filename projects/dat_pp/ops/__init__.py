"""The attention operators of DAT++ as plain functions on tensors."""

from .attention import attention
from .deformable_attention import deformable_attention
from .neighborhood_attention import neighborhood_attention

__all__ = ['attention', 'deformable_attention', 'neighborhood_attention']

"""The C++ kernels of backend ``native``: how they are compiled, called and what they share."""

from .build import Arguments, Kernels, Map, fields, padded_size, unsupported_reason
from .tensors import as_heads, as_map, heads_last, splits_of

__all__ = [
    'Arguments',
    'Kernels',
    'Map',
    'as_heads',
    'as_map',
    'fields',
    'heads_last',
    'padded_size',
    'splits_of',
    'unsupported_reason',
]

"""Weights: read checkpoint files, rename published weights, compare weights with a model.

Every part of the package that opens a checkpoint goes through :func:`read_checkpoint`, and every
report of what does not fit is a :class:`Mismatch`.
"""

from .files import ENTRIES, Checkpoint, read_checkpoint
from .loading import fit, load_pretrained, split_weights
from .mismatch import Mismatch, compare, some
from .published import convert_published, is_published, with_our_names

__all__ = [
    'ENTRIES',
    'Checkpoint',
    'Mismatch',
    'compare',
    'convert_published',
    'fit',
    'is_published',
    'load_pretrained',
    'read_checkpoint',
    'some',
    'split_weights',
    'with_our_names',
]

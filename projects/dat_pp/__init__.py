"""DAT and DAT++ backbones for mmpretrain, mmdet and mmsegmentation.

Importing this package registers the backbone ``DAT`` in mmengine's root registry, which the
registries of all three libraries fall back to, and the published learning rate schedule beside it.
"""

from . import packages  # noqa: F401  tells mmengine about this package
from .checkpoint import convert_published
from .models import DAT
from .ops import deformable_attention, neighborhood_attention
from .schedulers import LateCosineAnnealingLR

__version__ = '0.1.0'
__all__ = [
    'DAT',
    'LateCosineAnnealingLR',
    'convert_published',
    'deformable_attention',
    'neighborhood_attention',
]

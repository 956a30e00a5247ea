"""DAT and DAT++ backbones for mmpretrain, mmdet and mmsegmentation.

Importing this package registers the backbone ``DAT`` in mmengine's root registry, which the
registries of all three libraries fall back to, and beside it the published learning rate schedule,
layer-wise learning rate decay, and mixed precision on CPUs.
"""

from .catalog import config
from .compat import mmpretrain as _mmpretrain  # noqa: F401  registers our models there by name
from .compat import torch as _torch  # noqa: F401  registers our operators' FLOPs there
from .compat.mmengine import upstream
from .engine import float32 as _float32  # noqa: F401  registers Float32Head, Float32RoIExtractor
from .engine.layer_decay import BackboneLayerDecayConstructor
from .engine.optim import CPUAmpOptimWrapper
from .engine.schedulers import LateCosineAnnealingLR
from .models import DAT
from .ops import deformable_attention, neighborhood_attention
from .weights import convert_published

__version__ = '0.1.0'
__all__ = [
    'DAT',
    'BackboneLayerDecayConstructor',
    'CPUAmpOptimWrapper',
    'LateCosineAnnealingLR',
    'config',
    'convert_published',
    'deformable_attention',
    'neighborhood_attention',
    'upstream',
]

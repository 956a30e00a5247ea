"""DAT and DAT++ backbones and classifiers for PyTorch, timm and OpenMMLab's libraries.

``import dat_pp`` needs PyTorch only. In a program that uses mmengine it registers the backbone
``DAT`` in mmengine's root registry, which the registries of mmpretrain, mmdet and mmsegmentation
fall back to, and beside it the published learning rate schedule, layer-wise learning rate decay,
and mixed precision on CPUs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .catalog import config
from .compat import mmpretrain as _mmpretrain  # noqa: F401  registers our models there by name
from .compat import registry as _registry  # noqa: F401  registers our modules in mmengine
from .compat import timm as _timm  # noqa: F401  registers our models there
from .compat import torch as _torch  # noqa: F401  registers our operators' FLOPs there
from .compat.mmengine import upstream
from .factory import create_model
from .models import DAT, DATClassifier
from .ops import deformable_attention, neighborhood_attention
from .weights import convert_published

if TYPE_CHECKING:
    from .engine.layer_decay import BackboneLayerDecayConstructor
    from .engine.optim import CPUAmpOptimWrapper
    from .engine.schedulers import LateCosineAnnealingLR

__version__ = '0.1.0'
__all__ = [
    'DAT',
    'BackboneLayerDecayConstructor',
    'CPUAmpOptimWrapper',
    'DATClassifier',
    'LateCosineAnnealingLR',
    'config',
    'convert_published',
    'create_model',
    'deformable_attention',
    'neighborhood_attention',
    'upstream',
]

# Subclasses of mmengine's classes, imported when first used.
_LAZY = {
    'BackboneLayerDecayConstructor': 'layer_decay',
    'CPUAmpOptimWrapper': 'optim',
    'LateCosineAnnealingLR': 'schedulers',
}


def __getattr__(name: str) -> Any:
    if name in ('apis', 'explain'):
        return import_module(f'.{name}', __name__)
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        return getattr(import_module(f'.engine.{_LAZY[name]}', __name__), name)
    except ModuleNotFoundError as error:
        message = f"dat_pp.{name} needs mmengine: pip install 'dat_pp[mmlab]'"
        raise ImportError(message) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Register our modules in mmengine's root registry, once mmengine is loaded.

The registries of mmpretrain, mmdet and mmsegmentation fall back to it. ``import dat_pp`` itself
loads nothing of mmengine: a program that builds models from configs has done so, or will.
"""

from types import ModuleType

from .imports import when_imported


def _register_models(registry: ModuleType) -> None:
    from .. import models
    from ..engine import float32  # noqa: F401  registers its modules

    for module in (models.DAT, models.SimMIMDAT):
        if registry.MODELS.module_dict.get(module.__name__) is not module:
            registry.MODELS.register_module(module=module)


def _register_optimization(_: ModuleType) -> None:
    from ..engine import layer_decay, optim, schedulers  # noqa: F401  register their classes


when_imported('mmengine.registry', _register_models)
when_imported('mmengine.optim', _register_optimization)

"""Register our models with timm, once timm is imported.

``timm.create_model('dat_t_pp')`` and what builds on it (``TIMMBackbone`` of MMLab,
segmentation_models_pytorch, timm's scripts) then take our names. timm has no entry point that would
do this without ``import dat_pp``.
"""

import warnings
from types import ModuleType

from ..imports import when_imported


def _register_models(models: ModuleType) -> None:
    try:
        from . import dat  # noqa: F401  registers our models on import
    except ImportError as error:  # an unknown version: importing timm must not fail for us
        warnings.warn(f'dat_pp registers no models with this timm: {error}', stacklevel=2)


when_imported('timm.models', _register_models)

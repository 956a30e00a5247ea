"""Register our classification models with mmpretrain's ``ModelHub``, once mmpretrain is imported.

``mmpretrain.get_model``, ``list_models``, ``inference_model`` and its inferencers then take their
names. mmpretrain has no entry point that would do this without ``import dat_pp``.
"""

from types import ModuleType

from .. import catalog
from .imports import when_imported


def _register_models(apis: ModuleType) -> None:
    names = [model['Name'] for model in catalog.models('mmpretrain')]
    hub = getattr(apis, 'ModelHub', None)  # not in the first versions of mmpretrain
    if hub and names and not any(hub.has(name) for name in names):
        folder = catalog.root()
        metafile = folder / 'configs' / 'imagenet' / 'metafile.yml'
        hub.register_model_index(metafile, config_prefix=folder)


when_imported('mmpretrain.apis.model', _register_models)

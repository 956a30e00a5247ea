"""Lets mmengine find configs of this package and of mmseg: ``_base_ = 'dat_pp::...'``.

mmengine looks only into packages that it lists by name, and knows mmseg as `mmsegmentation`, not as
`onedl-mmsegmentation`. The name of the module serves as well.
"""

from functools import cache

from mmengine.config import Config, utils
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

MODULE2PACKAGE['dat_pp'] = 'dat_pp'
if not is_installed(MODULE2PACKAGE['mmseg']):
    MODULE2PACKAGE['mmseg'] = 'mmseg'

# For every `_base_ = 'mmdet::...'` mmengine would parse all metafiles of the library again.
utils.load = cache(utils.load)

_get_cfg_path = Config._get_cfg_path


def _without_own_scope(cfg_path: str, filename: str) -> tuple[str, str | None]:
    """As mmengine's, but what comes from our configs is built in the scope of ``default_scope``.

    mmengine would build it in a scope `dat_pp`, where the library's modules are not found.
    """
    path, scope = _get_cfg_path(cfg_path, filename)
    return path, None if scope == 'dat_pp' else scope


Config._get_cfg_path = staticmethod(_without_own_scope)

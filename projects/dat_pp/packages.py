"""Lets mmengine find configs of this package and of mmseg: ``_base_ = 'dat_pp::...'``.

mmengine looks only into packages that it lists by name, and knows mmseg as `mmsegmentation`, not as
`onedl-mmsegmentation`. The name of the module serves as well.
"""

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

MODULE2PACKAGE['dat_pp'] = 'dat_pp'
if not is_installed(MODULE2PACKAGE['mmseg']):
    MODULE2PACKAGE['mmseg'] = 'mmseg'

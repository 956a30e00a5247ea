"""All that this package changes in mmengine, for which versions, and why.

A change is made when its module is imported, by us or by somebody else later, and again if that
module is reloaded. Each looks at what it replaces first: where mmengine is of a version or of a
shape that is not known here, it is left alone and ``SKIPPED`` says why. ``dat_pp.config`` and
``dat_pp.upstream`` work without any of them.

===================================== ==========================================================
what                                  why
===================================== ==========================================================
``MODULE2PACKAGE``                    mmengine reads ``package::name`` only for the packages in
                                      this table, and has mmseg in it as ``mmsegmentation``, not
                                      as ``onedl-mmsegmentation``
``Config._get_cfg_path``              the modules of a ``dat_pp::`` base must be built in the
                                      config's ``default_scope``, not in a scope ``dat_pp``
``config.utils.load``                 all metafiles of a library are parsed for each base
``BaseInferencer``                    inferencers know only the models in a library's own index
``mmengine.analysis``                 its FLOP counter takes operators that it does not know for
                                      free: ours join its table (``flops.py``)
===================================== ==========================================================

``CheckpointLoader`` takes schemes of other packages: here for the share pages of the published
weights, which a browser can open but a program cannot download.
"""

import functools
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import catalog
from .imports import replacing, when_imported

VERSIONS = ('0.10.0', '0.11.0')  # from the first on, up to and without the second
SHARE_PAGES = ('https://1drv.ms/', 'https://cloud.tsinghua.edu.cn/', 'https://drive.google.com/')
LIBRARIES = set(catalog.LIBRARIES.values())
# What was left alone -> the reason.
SKIPPED: dict[str, str] = {}


def upstream(*names: str) -> list[str]:
    """Bases from the libraries, for ``_base_``, under whatever name a library is installed.

    mmengine finds ``mmseg::...`` only in a distribution called ``mmsegmentation``; the one that is
    installed may be ``onedl-mmsegmentation``::

        _base_ = [
            *__import__('dat_pp').upstream('mmseg::_base_/models/upernet_swin.py'),
            './mine.py',
        ]

    Args:
        names: ``package::path``, with the path below the package's ``configs``.

    Returns:
        The names as they are, which mmengine can resolve now. Where it cannot, because this version
        of it is unknown here: paths, whose modules are built in the config's ``default_scope``.
    """
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.utils import get_installed_path

    bases = []
    for name in names:
        package, _, path = name.partition('::')
        if not _is_installed(MODULE2PACKAGE.get(package, package)) and _is_installed(package):
            name = f'{get_installed_path(package)}/.mim/configs/{path}'
        bases.append(name)
    return bases


def _known_packages(utils: ModuleType) -> None:
    packages = utils.MODULE2PACKAGE
    packages['dat_pp'] = 'dat_pp'
    if not _is_installed(packages['mmseg']) and _is_installed('mmseg'):
        packages['mmseg'] = 'mmseg'  # mmengine takes the name of a module as well


def _load_once(utils: Any) -> None:
    original = _original(utils.load, ['file'])
    utils.load = replacing(functools.cache(original), original)


def _own_bases(config: ModuleType) -> None:
    original = _original(config.Config._get_cfg_path, ['cfg_path', 'filename'])

    @functools.wraps(original)
    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        package, _, name = cfg_path.partition('::')
        if package == 'dat_pp' and name:
            return catalog.config(name), None
        return original(cfg_path, filename)

    config.Config._get_cfg_path = staticmethod(replacing(get_cfg_path, original))


def _models_by_name(infer: ModuleType) -> None:
    inferencer = infer.BaseInferencer
    original = _original(inferencer._get_models_from_metafile, ['dir'])
    folder_of = inferencer._get_repo_or_mim_dir

    @functools.wraps(original)
    def get_models_from_metafile(dir: str) -> Iterator[dict[str, Any]]:
        yield from original(dir)
        for library in LIBRARIES & sys.modules.keys():
            if folder_of(library) == dir:
                yield from catalog.models(library)

    replacement = staticmethod(replacing(get_models_from_metafile, original))
    inferencer._get_models_from_metafile = replacement


def _share_pages(checkpoint: ModuleType) -> None:
    loader = checkpoint.CheckpointLoader
    loader.register_scheme(prefixes=SHARE_PAGES, loader=load_from_share_page, force=True)


def load_from_share_page(filename: str, map_location: object = None) -> dict[str, Any]:
    """Read published weights that a person has downloaded to PyTorch's folder of checkpoints.

    Raises:
        ValueError: The file is not there; the message says what to save where.
    """
    import torch

    models = [model for library in LIBRARIES for model in catalog.models(library)]
    names = [model['Name'] for model in models if model['Weights'] == filename]
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    path = next((folder / f'{name}.pth' for name in names), None)
    if path is None or not path.is_file():
        raise ValueError(
            f'{filename} is a share page, which only a browser can open: save its file '
            + ('and give the path' if path is None else f'as {path}, or give the path of another')
        )
    from ..weights import read_checkpoint, with_our_names

    checkpoint = read_checkpoint(path)
    weights = with_our_names(checkpoint.weights)
    return {'state_dict': weights, 'meta': checkpoint.content.get('meta', {})}


def _count_operators(analysis: ModuleType) -> None:
    from .flops import handlers

    analysis._DEFAULT_SUPPORTED_FLOP_OPS.update(handlers())


CHANGES: dict[str, list[Callable[[ModuleType], None]]] = {
    'mmengine.config.utils': [_known_packages, _load_once],
    'mmengine.config.config': [_own_bases],
    'mmengine.infer.infer': [_models_by_name],
    'mmengine.analysis.complexity_analysis': [_count_operators],
    'mmengine.runner.checkpoint': [_share_pages],
}


def _is_installed(name: str) -> bool:
    """Whether mmengine finds this distribution or module; its own function is slow up to 0.10.7."""
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return importlib.util.find_spec(name) is not None


class _UnknownShapeError(Exception):
    """A function of mmengine does not have the parameters that its replacement relies on."""


def _original(function: Callable, parameters: list[str]) -> Callable:
    """``function`` as mmengine has it, also if it was replaced here before."""
    function = getattr(function, '_dat_pp_original', function)
    found = list(inspect.signature(function).parameters)
    if found[: len(parameters)] != parameters:
        raise _UnknownShapeError(f'{function.__qualname__} takes {found}, not {parameters}')
    return function


def apply() -> None:
    """Make the changes, now or when the modules are imported. Repeating it changes nothing."""
    for name, changes in CHANGES.items():
        for change in changes:
            when_imported(name, _guarded(change))


def _guarded(change: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    @functools.wraps(change)
    def guarded(module: ModuleType) -> None:
        import mmengine.version  # loaded with any module of mmengine
        from mmengine.utils import digit_version

        version = getattr(mmengine, '__version__', mmengine.version.__version__)
        first, last = map(digit_version, VERSIONS)
        SKIPPED.pop(change.__name__, None)
        if not first <= digit_version(version) < last:
            SKIPPED[change.__name__] = f'mmengine {version} is not known'
            return
        try:
            change(module)
        except (AttributeError, KeyError, _UnknownShapeError) as error:
            SKIPPED[change.__name__] = f'mmengine {version}: {error}'

    return guarded


apply()

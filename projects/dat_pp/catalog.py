"""Find the configs and models of this package by name, in every form of installation."""

import difflib
import functools
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
# Where a config starts -> the library that builds its model.
LIBRARIES = {
    'imagenet/': 'mmpretrain',
    'coco/': 'mmdet',
    'ade20k/': 'mmseg',
    'digits/classification': 'mmpretrain',
    'digits/mask-rcnn': 'mmdet',
    'digits/upernet': 'mmseg',
}


def root() -> Path:
    """The folder that holds ``configs`` and ``model-index.yml``.

    It is ``.mim`` inside an installed package, and the repository in a checkout that is only on
    ``PYTHONPATH``.

    Raises:
        FileNotFoundError: The package was copied without its configs.
    """
    for folder in (PACKAGE / '.mim', PACKAGE.parents[1]):
        if (folder / 'model-index.yml').is_file() and (folder / 'configs').is_dir():
            return folder
    raise FileNotFoundError(f'no configs of dat_pp in {PACKAGE}/.mim or {PACKAGE.parents[1]}')


def config(name: str) -> str:
    """Path of a config of this package, for ``_base_``, ``Config.fromfile`` and every tool.

    Usable in a config of another project, with nothing imported before::

        _base_ = __import__('dat_pp').config('imagenet/dat-pp-tiny_32xb128_in1k')

    Args:
        name: File name below ``configs``. ``.py`` may be left out, and for a complete config also
            its folder; underscores may stand for hyphens.

    Raises:
        ValueError: There is no such config, or there are several; the message lists near names.
    """
    folder = root() / 'configs'
    path = folder / f'{name.removesuffix(".py")}.py'
    if not path.is_file():
        configs = _configs(folder)
        wanted = _normalize(name)
        found = [full for full in configs if wanted in (full, full.partition('/')[2])]
        if len(found) != 1:
            near = found or [full for full in configs if wanted in full]
            near = near or difflib.get_close_matches(wanted, configs, n=5, cutoff=0.5)
            names = [str(configs[full].relative_to(folder))[: -len('.py')] for full in near[:5]]
            raise ValueError(
                f"dat_pp has {'several configs' if found else 'no config'} '{name}'"
                + (f'; near: {", ".join(names)}' if names else '')
            )
        path = configs[found[0]]
    return str(path)


def lazy_config(stub: str) -> dict[str, Any]:
    """Settings of the config that ``stub``, a file in the package's ``configs``, stands for.

    mmengine's ``with read_base()`` needs a file that can be named in an import statement, without
    hyphens, and does not read ``_base_`` there.
    """
    from mmengine.config import Config

    path = Path(stub)
    return Config.fromfile(config(f'{path.parent.name}/{path.stem}')).to_dict()


def models(library: str) -> list[dict[str, Any]]:
    """Entries of the model index that ``library`` (mmpretrain, mmdet or mmseg) builds.

    ``Config`` is an absolute path; ``Weights`` is None where none were published. A package that
    was copied without its configs has no models: importing a library must not fail for them.
    """
    try:
        folder = root()
    except FileNotFoundError:
        return []
    return [model for scope, model in _index(folder) if scope == library]


@functools.cache
def _index(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    from mmengine.fileio import load

    entries = []
    for metafile in load(folder / 'model-index.yml')['Import']:
        for model in load(folder / metafile)['Models']:
            name = model['Config'].removeprefix('configs/')
            scope = next(scope for start, scope in LIBRARIES.items() if name.startswith(start))
            path = str(folder / model['Config'])
            entries.append((scope, {'Weights': None, **model, 'Config': path}))
    return entries


def _configs(folder: Path) -> dict[str, Path]:
    """Normalized name with folder -> file, without the fragments under ``_base_``."""
    paths = sorted(folder.glob('[!_]*/*.py'))
    return {_normalize(str(path.relative_to(folder))): path for path in paths}


def _normalize(name: str) -> str:
    return name.removesuffix('.py').replace('\\', '/').replace('-', '_').lower()

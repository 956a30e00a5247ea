"""Packages ``dat_pp`` together with its configs and tools, where mmengine and mim look for them."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / 'projects' / 'dat_pp'
MIM_FILES = ('configs', 'tools', 'model-index.yml')
# Stands for a config in `with read_base(): from dat_pp.configs.coco.mask_rcnn_... import *`.
LAZY_CONFIG = "globals().update(__import__('dat_pp').catalog.lazy_config(__file__))\n"


def read_version() -> str:
    """Read the version without importing the package, which needs torch."""
    return re.search(r"^__version__ = '(.+)'$", (PACKAGE / '__init__.py').read_text(), re.M)[1]


def read_requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def mim_sources() -> list[Path]:
    return [ROOT / name for name in MIM_FILES if (ROOT / name).exists()]


def write_lazy_configs(package: Path) -> None:
    """A file for every config, with a name that can be imported, where mmengine looks for it."""
    shutil.rmtree(package / 'configs', ignore_errors=True)
    for config in (ROOT / 'configs').glob('[!_]*/*.py'):
        stub = package / 'configs' / config.parent.name / config.name.replace('-', '_')
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(LAZY_CONFIG)


class BuildWithMim(build_py):
    """Put configs, tools and the model index under ``dat_pp/.mim``.

    A wheel gets copies. An editable install gets links in the source tree, so that edits show.
    """

    def run(self) -> None:
        super().run()
        write_lazy_configs(PACKAGE if self.editable_mode else Path(self.build_lib) / 'dat_pp')
        if self.editable_mode:
            folder = PACKAGE / '.mim'
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for source in mim_sources():
                (folder / source.name).symlink_to(Path('../../..') / source.name)
            return
        folder = Path(self.build_lib) / 'dat_pp' / '.mim'
        shutil.rmtree(folder, ignore_errors=True)  # the build folder outlives removed files
        folder.mkdir(parents=True)
        for source in mim_sources():
            if source.is_dir():
                ignored = shutil.ignore_patterns('__pycache__')
                shutil.copytree(source, folder / source.name, ignore=ignored)
            else:
                shutil.copy(source, folder)

    def get_source_files(self) -> list[str]:
        """What a source distribution must hold so that a wheel can be built from it."""
        paths = [*mim_sources(), ROOT / 'requirements']
        files = [file for path in paths for file in ([path] if path.is_file() else path.rglob('*'))]
        return super().get_source_files() + [
            str(file.relative_to(ROOT))
            for file in files
            if file.is_file() and '__pycache__' not in file.parts
        ]


setup(
    name='dat_pp',
    version=read_version(),
    description='DAT and DAT++ backbones for mmpretrain, mmdet and mmsegmentation',
    license='Apache-2.0',
    python_requires='>=3.10',
    package_dir={'': 'projects'},
    packages=find_packages('projects'),
    package_data={'dat_pp.ops': ['*/*.h', '*/*.cpp']},
    cmdclass={'build_py': BuildWithMim},
    # torch and mmengine are needed too. They are not listed: mmengine comes as `mmengine` or as
    # `onedl-mmengine`, and torch must be the one that mmcv was compiled with.
    install_requires=[],
    extras_require={name: read_requirements(name) for name in ('mmcv', 'mmlab', 'tests')},
)

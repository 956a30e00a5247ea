"""What pyproject.toml cannot say: configs and tools in the package, the README for an index."""

import re
import shutil
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

if int(setuptools.__version__.partition('.')[0]) < 77:  # would install a package UNKNOWN
    raise SystemExit(
        f'dat_pp is built with setuptools 77 or later, here is {setuptools.__version__}: '
        'run pip without --no-build-isolation, or upgrade setuptools'
    )
ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / 'projects' / 'dat_pp'
MIM_FILES = ('configs', 'tools', 'model-index.yml')
# Stands for a config in `with read_base(): from dat_pp.configs.coco.mask_rcnn_... import *`.
LAZY_CONFIG = "globals().update(__import__('dat_pp').catalog.lazy_config(__file__))\n"


def long_description() -> str:
    """The README as a package index can show it.

    An index has none of the files that the README links to. Their links become links to the
    repository if CITATION.cff names one; else their text remains, and figures are left out.
    """
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    citation = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
    repository = re.search(r"^repository-code: *'?([^\s']+)", citation, re.M)
    link, figure = r'\1', ''
    if repository:
        link = rf'[\1]({repository[1]}/blob/HEAD/\2)'
        figure = rf'![\1]({repository[1]}/raw/HEAD/\2)'
    readme = re.sub(r'!\[([^\]]*)\]\((?!\w+:)([^)]+)\)\n*', figure and figure + '\n\n', readme)
    return re.sub(r'(?<!!)\[([^\]]*)\]\((?!\w+:)([^)]+)\)', link, readme)


class BuildWithMim(build_py):
    """Put configs, tools and the model index under ``dat_pp/.mim``, where mim and mmengine look.

    A wheel gets copies. An editable install gets links in the source tree, so that edits show.
    """

    def run(self) -> None:
        super().run()
        package = PACKAGE if self.editable_mode else Path(self.build_lib) / 'dat_pp'
        write_lazy_configs(package / 'configs')
        folder = package / '.mim'
        shutil.rmtree(folder, ignore_errors=True)  # the build folder outlives removed files
        folder.mkdir(parents=True)
        for source in (ROOT / name for name in MIM_FILES):
            if self.editable_mode:
                (folder / source.name).symlink_to(Path('../../..') / source.name)
            elif source.is_dir():
                ignored = shutil.ignore_patterns('__pycache__')
                shutil.copytree(source, folder / source.name, ignore=ignored)
            else:
                shutil.copy(source, folder)


def write_lazy_configs(folder: Path) -> None:
    """Write a file for every config, with a name that an import statement can have."""
    shutil.rmtree(folder, ignore_errors=True)
    for config in (ROOT / 'configs').glob('[!_]*/*.py'):
        stub = folder / config.parent.name / config.name.replace('-', '_')
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(LAZY_CONFIG, encoding='utf-8')


setuptools.setup(
    long_description=long_description(),
    long_description_content_type='text/markdown',
    cmdclass={'build_py': BuildWithMim},
)

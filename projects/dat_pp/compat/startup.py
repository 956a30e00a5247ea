"""Import ``dat_pp`` in every process of this environment in which mmengine may need it.

Then ``_base_ = 'dat_pp::...'`` and our models by name work in tools that never import ``dat_pp``.
It is a choice of the user because it reaches every program of the environment::

    python -m dat_pp.compat.startup install|remove|status

``install`` writes two files to site-packages: a ``.pth`` file, which Python runs at start-up, and a
copy of ``imports.py``, which the ``.pth`` file loads and which says when ``dat_pp`` is imported.
pip does not know of these files; without ``dat_pp`` they do nothing.
"""

import argparse
import importlib.util
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from . import imports
from .mmengine import CHANGES, SKIPPED

# One line: that is all a .pth file can run.
HOOK = 'import _dat_pp_imports; _dat_pp_imports.import_when_needed("dat_pp")\n'


def files(folder: str | None = None) -> tuple[Path, Path]:
    """The two files: the copy of ``imports.py`` and the ``.pth`` file.

    Args:
        folder: Where Python looks for ``.pth`` files; by default this environment's site-packages.
    """
    packages = Path(folder or sysconfig.get_path('purelib'))
    return packages / '_dat_pp_imports.py', packages / 'dat_pp_startup.pth'


def install(folder: str | None = None) -> None:
    module, hook = files(folder)
    shutil.copyfile(imports.__file__, module)
    hook.write_text(HOOK, encoding='utf-8')


def remove(folder: str | None = None) -> None:
    for path in reversed(files(folder)):
        path.unlink(missing_ok=True)


def status(folder: str | None = None) -> str:
    """Whether the hook is installed, and what in mmengine is left as it is."""
    module, hook = files(folder)
    state = 'installed' if module.is_file() and hook.is_file() else 'not installed'
    if state == 'installed' and (
        module.read_bytes() != Path(imports.__file__).read_bytes()
        or hook.read_text(encoding='utf-8') != HOOK
    ):
        state = 'installed by another version of dat_pp: install it again'
    lines = [f'{hook}: {state}']
    if importlib.util.find_spec('mmengine'):
        for name in CHANGES:  # importing the modules makes the changes
            importlib.import_module(name)
    lines += [f'left as it is: {name}: {reason}' for name, reason in SKIPPED.items()]
    return '\n'.join(lines)


def _read(path: Path) -> str:
    return path.read_text(encoding='utf-8')


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m dat_pp.compat.startup', description=__doc__.splitlines()[0]
    )
    parser.add_argument('action', choices=('install', 'remove', 'status'))
    parser.add_argument('--folder', help='in place of site-packages of this environment')
    args = parser.parse_args(argv)
    actions = {'install': install, 'remove': remove}
    if args.action in actions:
        try:
            actions[args.action](args.folder)
        except OSError as error:
            parser.error(f'{args.action}: {error}')
    print(status(args.folder))


if __name__ == '__main__':
    main()

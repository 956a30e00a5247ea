"""Imports point down, as docs/architecture.md draws them."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / 'projects' / 'dat_pp'
MMLAB = {'mmcv', 'mmdet', 'mmpretrain', 'mmseg'}
# What modules may import when they are imported: parts of this package, other packages.
LAYERS = {
    'ops': ({'ops'}, {'torch'}),
    'weights': ({'weights'}, {'torch'}),
    'models': ({'models', 'ops', 'hub', 'weights'}, {'torch'}),
    'factory.py': ({'models', 'weights'}, {'torch'}),
    'hub': ({'hub', 'models', 'factory', 'weights'}, {'torch'}),
    'engine': (
        {'engine', 'models', 'ops', 'hub', 'factory', 'weights', 'catalog', 'compat'},
        None,
    ),
    'explain': ({'explain', 'engine', 'models', 'ops', 'factory', 'weights', 'catalog'}, None),
    'apis': ({'apis', 'engine', 'explain', 'factory', 'weights', 'catalog'}, None),
    'benchmark': ({'benchmark', 'engine', 'models', 'ops'}, None),
}


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """What a module imports at import time: the part or package, and whether it is of dat_pp."""
    place = file.relative_to(PACKAGE.parent).parts[:-1]
    pending = list(ast.parse(file.read_text(encoding='utf-8')).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
            continue
        if isinstance(node, ast.If | ast.Try):
            pending += ast.iter_child_nodes(node)
        elif isinstance(node, ast.Import):
            yield from ((alias.name.split('.')[0], False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = place[: len(place) + 1 - node.level] if node.level else ()
            path = (*base, *(node.module.split('.') if node.module else ()))
            if path[0] != 'dat_pp':
                yield path[0], False
            elif len(path) > 1:
                yield path[1], True
            else:
                names = (alias.name for alias in node.names)
                yield from ((name, True) for name in names if name != '__version__')


@pytest.mark.parametrize('layer', LAYERS)
def test_imports_point_down(layer):
    parts, packages = LAYERS[layer]
    folder = PACKAGE / layer
    for file in folder.rglob('*.py') if folder.is_dir() else [folder]:
        if layer == 'ops' and file.name in ('triton_kernels.py', 'kernels.py'):
            continue  # imported when the Triton backend first runs
        for name, ours in imports(file):
            if ours:
                assert name in parts, f'{file}: dat_pp.{name}'
            elif name not in sys.stdlib_module_names:
                assert name not in MMLAB, f'{file}: {name}'
                assert packages is None or name in packages, f'{file}: {name}'

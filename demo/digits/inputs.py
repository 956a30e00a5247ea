"""What the results of a task depend on, as one SHA-256: a changed key means stale results."""

import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path

from mmengine.config import Config

LIBRARIES = (
    'torch',
    'torchvision',
    'numpy',
    'cv2',
    'mmengine',
    'mmcv',
    'mmpretrain',
    'mmdet',
    'mmseg',
)
NOT_CODE = {'.md', '.png', '.pyc', '.pyi'}
# A string or character literal, or a comment.
CPP_TOKEN = re.compile(
    r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|//[^\n]*|/\*.*?\*/""", re.DOTALL
)


def task_key(config: Config, data: str, start: str, code: str, versions: dict[str, str]) -> str:
    """SHA-256 of everything that can change the numbers of a task.

    Args:
        config: The config of the task, with its bases and overrides.
        data: SHA-256 of the dataset.
        start: Key of the task whose weights this one starts from; empty if there is none.
        code: SHA-256 of the code.
        versions: Version of every library.
    """
    parts = [config.to_dict(), data, start, code, versions, os.environ.get('DAT_PP_BACKEND', '')]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


def code_digest(paths: Iterable[Path]) -> str:
    """SHA-256 of all source files at or below `paths`, without docstrings, comments and layout."""
    total = hashlib.sha256()
    for root in paths:
        files = sorted(root.rglob('*')) if root.is_dir() else [root]
        for path in files:
            hidden = any(part.startswith('.') for part in path.relative_to(root).parts)
            if path.is_file() and path.suffix not in NOT_CODE and not hidden:
                name = path.relative_to(root.parent).as_posix()
                total.update(hashlib.sha256(name.encode()).digest())
                total.update(hashlib.sha256(code_of(path)).digest())
    return total.hexdigest()


def code_of(path: Path) -> bytes:
    """What a compiler sees of a source file; the content of any other file."""
    if path.suffix == '.py':
        return _python(path.read_text()).encode()
    if path.suffix in {'.cpp', '.h'}:
        text = CPP_TOKEN.sub(lambda token: token[1] or ' ', path.read_text())
        lines = (' '.join(line.split()) for line in text.splitlines())
        return '\n'.join(line for line in lines if line).encode()
    return path.read_bytes()


def library_versions() -> dict[str, str]:
    """Version of every library that computes, by import name; those not installed are left out."""
    found = packages_distributions()
    versions = {name: version(found[name][0]) for name in LIBRARIES if name in found}
    return versions | {'python': '.'.join(map(str, sys.version_info[:2]))}


def _python(text: str) -> str:
    """The syntax tree without docstrings: they are the only bare strings that stand in code."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        if isinstance(body, list):
            body[:] = [statement for statement in body if not _is_docstring(statement)]
    return ast.dump(tree)


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )

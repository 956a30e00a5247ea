"""The recipes of docs/extending.md, followed literally in a copy of the repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'extending.md').read_text()
RECIPES = dict(re.findall(r'^## (.+?)\n(.*?)(?=^## |\Z)', PAGE, re.M | re.S))
FENCE = re.compile(r'^( *)```(\w+)\n(.*?)^\1```$', re.M | re.S)
pytestmark = pytest.mark.slow


@pytest.fixture
def copy(tmp_path):
    ignored = shutil.ignore_patterns('__pycache__', '.mim')
    for name in ('configs', 'projects', 'tests', 'tools', 'model-index.yml', 'pyproject.toml'):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(source, tmp_path)
    return tmp_path


def follow(recipe: str, root: Path) -> list[str]:
    """Write the recipe's files, make its edits, run its commands; return what these printed."""
    printed = []
    for indent, language, block in FENCE.findall(RECIPES[recipe]):
        code = textwrap.dedent(block) if indent else block
        first = code.partition('\n')[0]
        if language == 'diff':
            edit(root, code)
        elif language == 'bash':
            printed += [run(root, *shlex.split(line)[1:]) for line in code.splitlines()]
        elif re.fullmatch(r'# [\w/.-]+\.py', first):
            file = root / first.removeprefix('# ')
            assert not file.exists(), f'{file} exists already'
            file.write_text(code.partition('\n')[2])
        else:
            printed.append(run(root, '-c', code))
            assert printed[-1].splitlines() == re.findall(r'^# (.*)', code, re.M)
    return printed


def edit(root: Path, diff: str) -> None:
    header, _, hunks = diff.partition('\n')
    file = root / header.removeprefix('--- ')
    text = file.read_text()
    for hunk in hunks.split('@@\n'):
        lines = hunk.splitlines(keepends=True)
        before = ''.join(line[1:] for line in lines if line[0] in ' -')
        after = ''.join(line[1:] for line in lines if line[0] in ' +')
        assert text.count(before) == 1, f'not once in {file.name}:\n{before}'
        text = text.replace(before, after)
    file.write_text(text)


def run(root: Path, *arguments: str) -> str:
    """Run Python on the copy; fail with what it wrote."""
    path = os.pathsep.join([str(root / 'projects'), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize('recipe', RECIPES)
def test_recipe(recipe, copy):
    follow(recipe, copy)

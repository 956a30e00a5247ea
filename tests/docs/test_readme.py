"""The README's code runs as written; links and scripts that Markdown pages name exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / 'README.md').read_text()
FENCE = re.compile(r'^```(\w+)\n(.*?)^```$', re.M | re.S)
LINK = re.compile(r'\]\((?!\w+:|#)([^)\s#]+)(?:#([^)\s]*))?\)')
PAGES = sorted(
    path
    for pattern in ('*.md', 'docs/**/*.md', 'configs/**/*.md', 'demo/**/*.md')
    for path in ROOT.glob(pattern)
)

# Builds a config's model as a library's train.py does, and runs its backbone.
BUILD = """
import sys, torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
cfg = Config.fromfile(sys.argv[1])
init_default_scope(cfg.default_scope)
model = MODELS.build(cfg.model).eval()
maps = model.extract_feat(torch.zeros(1, 3, 64, 64))
print(type(model.backbone).__name__, [tuple(m.shape[2:]) for m in maps])
"""


def blocks(language: str) -> list[str]:
    return [code for name, code in FENCE.findall(README) if name == language]


def run(*command: object, folder: Path) -> str:
    """Run a command in a folder that is not the repository; fail with what it wrote."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_python_block(tmp_path):
    (code,) = (block for block in blocks('python') if '_base_' not in block)
    printed = run(sys.executable, '-c', code, folder=tmp_path)
    (expected,) = re.findall(r'^# (.*)', code, re.M)
    assert printed.strip() == expected


@pytest.mark.slow
def test_config_block(tmp_path):
    (code,) = (block for block in blocks('python') if '_base_' in block)
    config = tmp_path / 'config.py'
    config.write_text(code)
    printed = run(sys.executable, '-c', BUILD, config, folder=tmp_path)
    assert printed.splitlines()[-1] == 'DAT [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]'


def commands() -> list:
    lines = [line for block in blocks('bash') for line in block.splitlines()]
    slow = pytest.mark.slow  # starting a tool imports a lot
    return [pytest.param(s, marks=slow if s.startswith('python ') else ()) for s in lines]


@pytest.mark.parametrize('command', commands())
def test_command(command, tmp_path):
    """Scripts exist and parse; the help of a Python tool lists the arguments that are given."""
    program, *words = shlex.split(command)
    if program == 'pip':
        assert words == ['install', '.']
        return
    script, *arguments = words
    if program == 'bash':
        run('bash', '-n', ROOT / script, folder=tmp_path)
        return
    usage = run(sys.executable, ROOT / script, '--help', folder=tmp_path)
    positional = re.findall(r'^  ([\w.]+)(?:  |$)', usage.partition('options:')[0], re.M)
    assert len([word for word in arguments if not word.startswith('-')]) == len(positional)
    assert all(word in usage for word in arguments if word.startswith('--'))


def test_length():
    assert len(README.splitlines()) <= 120


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as forges make them."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


pages = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pages
def test_scripts(page):
    for script in re.findall(
        r'(?<![\w/])(?:demo|requirements|tools)/[\w/]+\.(?:py|sh)\b', page.read_text()
    ):
        created = f'# {script}\n' in page.read_text()  # by a recipe of docs/extending.md
        assert created or (ROOT / script).is_file(), f'{page}: {script} does not exist'


@pages
def test_links(page):
    for target, anchor in LINK.findall(page.read_text()):
        file = page.parent / target
        assert file.exists(), f'{page}: {target} does not exist'
        if anchor and file.suffix == '.md':
            assert anchor in anchors(file), f'{page}: no heading #{anchor} in {target}'

"""The code of a page runs as written, block after block, and prints what it says."""

import re
from pathlib import Path

import pytest
from fresh import python

DOCS = Path(__file__).resolve().parents[2] / 'docs'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('page', 'lines'), [('plain_pytorch.md', 5), ('timm.md', 5), ('explorer.md', 1)]
)
def test_page(page: str, lines: int, tmp_path: Path) -> None:
    text = (DOCS / page).read_text(encoding='utf-8')
    blocks = re.findall(r'^```python\n(.*?)^```$', text, re.M | re.S)
    done = python(tmp_path, '-c', '\n'.join(blocks))
    assert done.returncode == 0, done.stderr
    expected = [line for block in blocks for line in re.findall(r'^# (.*)', block, re.M)]
    assert len(expected) == lines
    assert done.stdout.splitlines() == expected

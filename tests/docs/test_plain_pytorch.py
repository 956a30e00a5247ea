"""The code of docs/plain_pytorch.md runs as written and prints what it says."""

import re
from pathlib import Path

import pytest
from fresh import python

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'plain_pytorch.md'


@pytest.mark.slow
def test_page(tmp_path: Path) -> None:
    blocks = re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(encoding='utf-8'), re.M | re.S)
    done = python(tmp_path, '-c', '\n'.join(blocks))
    assert done.returncode == 0, done.stderr
    expected = [line for block in blocks for line in re.findall(r'^# (.*)', block, re.M)]
    assert len(expected) == 5
    assert done.stdout.splitlines() == expected

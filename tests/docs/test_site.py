"""The documentation builds as a website without a warning."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_build(tmp_path):
    command = [sys.executable, '-m', 'sphinx', '-q', '-n', '-W', '--keep-going', '-d']
    done = subprocess.run(
        [*command, str(tmp_path / 'doctrees'), str(ROOT / 'docs'), str(tmp_path / 'html')],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = {page.relative_to(ROOT / 'docs') for page in (ROOT / 'docs').glob('**/*.md')}
    built = {
        page.relative_to(tmp_path / 'html').with_suffix('.md')
        for page in (tmp_path / 'html').glob('**/*.html')
    }
    assert pages <= built

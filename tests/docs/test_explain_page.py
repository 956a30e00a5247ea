"""The code and the commands of docs/explain.md, and the command of docs/explorer.md."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh import python
from mmengine.config import Config
from mmengine.registry import MODELS
from tiny_models import build

from dat_pp.explain.run import parse_args

PAGE = (Path(__file__).resolve().parents[2] / 'docs' / 'explain.md').read_text(encoding='utf-8')
CODE = re.findall(r'^```python\n(.*?)^```$', PAGE, re.M | re.S)
EXPLORER = (Path(__file__).resolve().parents[2] / 'docs' / 'explorer.md').read_text(
    encoding='utf-8'
)
COMMANDS = re.findall(r'^python (tools/.*?[^\\])$', PAGE + EXPLORER, re.M | re.S)


def test_commands():
    for command in COMMANDS:
        script, *argv = shlex.split(command.replace('\\\n', ' '))
        assert script == 'tools/explain.py'
        assert parse_args(argv).out_dir
    assert len(COMMANDS) == 3


def test_config(tmp_path):
    (code,) = (block for block in CODE if '_base_' in block)
    config = tmp_path / 'config.py'
    config.write_text(code)
    backbone = MODELS.build(Config.fromfile(config).model).backbone
    assert backbone.arch.mixers == ['LS', 'LS', 'LDLD', 'LD']
    assert backbone.arch.coordinates == 'dat'


def test_gallery(tmp_path):
    (code,) = (block for block in CODE if 'gallery' in block)
    names = {}
    exec(code, names)
    images = [np.zeros((64, 64, 3), np.uint8)] * 2
    inputs = torch.rand(2, 3, 64, 64)
    names['draw_gallery'](build(), inputs, images, ['a', 'b'], tmp_path / 'gallery.svg')
    assert '>samples of block 0.1<' in (tmp_path / 'gallery.svg').read_text(encoding='utf-8')


@pytest.mark.slow
def test_trace(tmp_path):
    (code,) = (block for block in CODE if 'print(' in block)
    done = python(tmp_path, '-c', code)
    assert done.returncode == 0, done.stderr
    (expected,) = re.findall(r'^# (.*)', code, re.M)
    assert done.stdout.strip() == expected

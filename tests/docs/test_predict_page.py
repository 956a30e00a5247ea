"""The commands and the code of docs/predict.md."""

import re
import shlex
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fresh import python
from tools.tiny_tasks import save

from dat_pp.apis.run import parse_args
from dat_pp.catalog import config
from dat_pp.engine.config import read_config
from dat_pp.engine.noise import silence
from dat_pp.engine.preflight import check_model

PAGE = (Path(__file__).resolve().parents[2] / 'docs' / 'predict.md').read_text(encoding='utf-8')


def test_commands():
    commands = re.findall(r'^python (tools/.*?[^\\])$', PAGE, re.M | re.S)
    for command in commands:
        script, *argv = shlex.split(command.replace('\\\n', ' '))
        assert script == 'tools/predict.py'
        assert parse_args(argv).out_dir
    assert len(commands) == 3


@pytest.mark.slow
def test_code(tmp_path):
    cfg = read_config(Namespace(config=config('digits/mask-rcnn'), cfg_options=None))
    with silence():
        weights = check_model(cfg, pretrained=False).state_dict()
    (tmp_path / 'work_dirs' / 'digits').mkdir(parents=True)
    torch.save(dict(state_dict=weights), tmp_path / 'work_dirs' / 'digits' / 'mask-rcnn.pth')
    save(torch.randint(0, 255, (96, 96, 3), dtype=torch.uint8).numpy(), tmp_path / 'scene.png')
    (tmp_path / 'damaged.png').write_text('no image')
    (code,) = re.findall(r'^```python\n(.*?)^```$', PAGE, re.M | re.S)
    done = python(tmp_path, '-c', code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r'^# (.*)', code, re.M)

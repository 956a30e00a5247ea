"""The editable install finds configs and tools, by name and as bases of a config."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

import dat_pp

DIGITS = ('classification', 'mask-rcnn', 'upernet')


@pytest.mark.parametrize('name', DIGITS)
def test_configs_are_found_by_package(name):
    cfg = get_config(f'dat_pp::digits/{name}.py')
    assert cfg.model.backbone.type == 'DAT'


def test_package_as_base(tmp_path):
    """A config of somebody else's project, built as the tools of mmpretrain build it."""
    config = tmp_path / 'mine.py'
    config.write_text(
        "_base_ = 'dat_pp::digits/classification.py'\nmodel = dict(head=dict(num_classes=3))\n"
    )
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, dat_pp.DAT)
    assert model.head.num_classes == 3


def test_tools_are_under_mim():
    folder = Path(dat_pp.__file__).parent / '.mim'
    assert (folder / 'tools' / 'train.py').is_file()
    assert (folder / 'configs' / 'digits').is_dir()

"""``init_cfg`` and ``init_weights``: the backbone is no mmengine module and acts as one."""

import logging
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from tiny_models import TINY
from torch import nn

from dat_pp import DAT

CONSTANT = dict(type='Constant', layer='Conv2d', val=0.25)


class Detector(BaseModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(init_cfg=dict(type='Normal', layer='Linear', std=0.01))
        self.backbone = backbone
        self.head = nn.Linear(2, 2)


@pytest.fixture
def info(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What mmengine logs of the initialization, parameter by parameter."""
    messages = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'info', messages.append)
    monkeypatch.setattr(
        logger, 'handlers', [h for h in logger.handlers if not isinstance(h, logging.FileHandler)]
    )
    return messages


def test_types_of_mmengine(info: list[str]) -> None:
    """They act once, and each parameter is logged with what initialized it."""
    init_cfg = dict(CONSTANT)
    model = DAT(TINY, init_cfg=init_cfg)
    init_cfg['val'] = 1
    assert model.init_cfg == CONSTANT
    assert not model.is_init
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert model.is_init
    assert model.init_cfg == CONSTANT
    assert bool((model.stem.conv1.weight == 0.25).all())
    assert torch.equal(model.norm3.weight, before['norm3.weight'])
    logged = {text.split(' - ')[0].strip(): text for text in info}
    assert logged.keys() == dict(model.named_parameters()).keys()
    assert 'ConstantInit: val=0.25' in logged['stem.conv1.weight']
    assert 'The value is the same before and after' in logged['norm3.weight']
    assert not any(hasattr(module, '_params_init_info') for module in model.modules())

    nn.init.zeros_(model.stem.conv1.weight)
    model.init_weights()
    assert not model.stem.conv1.weight.any()


def test_inside_a_model_of_mmengine(info: list[str]) -> None:
    """The parent does not initialize the backbone by its own ``init_cfg``, and logs for both."""
    model = Detector(DAT(TINY, init_cfg=CONSTANT))
    model.init_weights()
    assert model.backbone.is_init
    assert bool((model.backbone.stem.conv2.weight == 0.25).all())
    logged = {text.split(' - ')[0].strip(): text for text in info}
    assert len(info) == len(logged) == len(list(model.parameters()))
    assert 'NormalInit' in logged['head.weight']
    assert 'ConstantInit' in logged['backbone.stem.conv1.weight']


def test_a_checkpoint_is_loaded_last(tmp_path: Path) -> None:
    source = DAT(TINY)
    path = tmp_path / 'a.pth'
    torch.save(source.state_dict(), path)
    model = DAT(TINY, init_cfg=[dict(type='Pretrained', checkpoint=str(path)), CONSTANT])
    model.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_nothing_to_do_without_init_cfg() -> None:
    torch.manual_seed(0)
    model = DAT(TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

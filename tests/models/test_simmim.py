"""Masked image modeling: the backbone inside mmpretrain's SimMIM, and its weights afterwards."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from tiny_models import TINY, V1

from dat_pp import DAT


def test_masked_patches_are_not_seen() -> None:
    torch.manual_seed(0)
    model = MODELS.build(dict(type='SimMIMDAT', arch=V1, out_indices=(3,))).eval()  # no overlap
    x = torch.rand(2, 3, 64, 64)
    mask = torch.zeros(2, 16, 16)
    mask[:, :8] = 1
    changed = x.clone()
    changed[:, :, :32] = 0
    assert torch.equal(model(x, mask)[0], model(changed, mask)[0])
    assert not torch.equal(model(x)[0], model(changed)[0])
    assert not torch.equal(model(x, mask)[0], model(x)[0])
    plain = DAT(V1, out_indices=(3,)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != 'mask_token'})
    assert torch.equal(model(x)[0], plain(x)[0])


def test_pretraining_step(tmp_path: Path) -> None:
    pytest.importorskip('mmpretrain')
    from mmpretrain import models  # noqa: F401
    from mmpretrain.structures import DataSample

    model = MODELS.build(
        dict(
            type='mmpretrain.SimMIM',
            backbone=dict(type='SimMIMDAT', arch=TINY, out_indices=(3,)),
            neck=dict(type='mmpretrain.SimMIMLinearDecoder', in_channels=32, encoder_stride=32),
            head=dict(
                type='mmpretrain.SimMIMHead',
                patch_size=4,
                loss=dict(type='mmpretrain.PixelReconstructionLoss', criterion='L1', channel=3),
            ),
        )
    )
    masks = (torch.rand(2, 16, 16) < 0.6).long()
    samples = [DataSample(mask=mask) for mask in masks]
    (loss,) = model(torch.rand(2, 3, 64, 64), samples, mode='loss').values()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.backbone.mask_token.grad.any()
    assert model.backbone.get_layer_depth('backbone.mask_token', 'backbone.') == (0, 10)

    path = tmp_path / 'pretrained.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    for type_ in ('DAT', 'SimMIMDAT'):
        backbone = MODELS.build(dict(type=type_, arch=TINY, init_cfg=init_cfg))
        backbone.init_weights()
        for name, value in model.backbone.state_dict().items():
            if not name.startswith('norm') and (name != 'mask_token' or type_ == 'SimMIMDAT'):
                assert torch.equal(backbone.state_dict()[name], value), name

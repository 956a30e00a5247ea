"""A trace of any model is that of the backbone in it."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from tiny_models import TINY, V1, build
from torch import nn

from dat_pp import DAT, DATClassifier
from dat_pp.explain import Trace, find_backbone, trace

BACKBONE = dict(type='DAT', arch=TINY)
NECK = dict(in_channels=TINY['embed_dims'], out_channels=8)


def mmpretrain_model() -> nn.Module:
    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(BACKBONE, out_indices=(3,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=32),
            data_preprocessor=dict(num_classes=2, mean=[128] * 3, std=[64] * 3, to_rgb=True),
        )
    )


def mmdet_model() -> nn.Module:
    init_default_scope('mmdet')
    return MODELS.build(
        dict(
            type='RetinaNet',
            backbone=BACKBONE,
            neck=dict(NECK, type='FPN', num_outs=4),
            bbox_head=dict(
                type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8,
                anchor_generator=dict(
                    type='AnchorGenerator', scales=[1], ratios=[1.0], strides=[4, 8, 16, 32]
                ),
            ),
            data_preprocessor=dict(
                type='DetDataPreprocessor', mean=[128] * 3, std=[64] * 3, bgr_to_rgb=True,
                pad_size_divisor=64,
            ),
        )
    )  # fmt: skip


def mmseg_model() -> nn.Module:
    init_default_scope('mmseg')
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=BACKBONE,
            decode_head=dict(
                type='FCNHead', in_channels=32, channels=8, num_convs=1, num_classes=3
            ),
            data_preprocessor=dict(
                type='SegDataPreProcessor', mean=[128] * 3, std=[64] * 3, bgr_to_rgb=True,
                test_cfg=dict(size=(64, 128)),
            ),
            test_cfg=dict(mode='whole'),
        )
    )  # fmt: skip


def timm_features() -> nn.Module:
    timm = pytest.importorskip('timm')
    return timm.create_model('dat_t', features_only=True)


MODELS_WITH_DAT = {
    'mmpretrain': mmpretrain_model,
    'mmdet': mmdet_model,
    'mmseg': mmseg_model,
    'timm': timm_features,
    'classifier': lambda: DATClassifier(V1, num_classes=5),
    'masked image modeling': lambda: MODELS.build(dict(type='SimMIMDAT', arch=TINY)),
    'single output': lambda: build(TINY, out_indices=(1,)),
    'activation recomputation': lambda: build(TINY, with_cp=True).train(),
    'wrapped': lambda: nn.ModuleDict(dict(a=nn.Linear(3, 3), b=nn.Sequential(build(V1)))),
    'compiled': lambda: torch.compile(build(TINY)),
}


def same(traced: Trace, expected: Trace) -> None:
    assert len(traced) == len(expected) > 0
    for block, other in zip(traced, expected, strict=True):
        assert (block.name, block.mixer, block.size) == (other.name, other.mixer, other.size)
    for block, other in zip(traced.deformable, expected.deformable, strict=True):
        assert torch.equal(block.positions, other.positions)
        assert torch.equal(block.received(), other.received())


@pytest.mark.parametrize('name', MODELS_WITH_DAT)
def test_backbone_is_found(name):
    torch.manual_seed(0)
    model = MODELS_WITH_DAT[name]()
    backbone = find_backbone(model)
    assert isinstance(backbone, DAT)
    plain = DAT(backbone.arch, out_indices=backbone.out_indices)
    plain.load_state_dict(backbone.state_dict(), strict=False)
    images = torch.rand(1, 3, 64, 64)
    same(trace(model, images), trace(plain, images))


@pytest.mark.parametrize('name', ['mmpretrain', 'mmdet', 'mmseg'])
@pytest.mark.parametrize('preprocessed', [False, True])
def test_data_of_mmlab(name, preprocessed):
    """What the data preprocessor yields, and what it takes: normalized, RGB, padded."""
    torch.manual_seed(0)
    model = MODELS_WITH_DAT[name]()
    image = torch.randint(0, 255, (3, 64, 100), dtype=torch.uint8)
    sample = BaseDataElement(metainfo=dict(ori_shape=(32, 50), img_shape=(64, 100)))
    sample.set_field((2.0, 2.0), 'scale_factor', field_type='metainfo')
    data = dict(inputs=[image], data_samples=[sample])
    if name == 'mmpretrain':
        data['inputs'] = image[None]
    if preprocessed:
        data = model.data_preprocessor(data, False)
    padded = torch.zeros(1, 3, 64, 100 if name == 'mmpretrain' else 128)
    padded[..., :100] = (image.flip(0).float() - 128) / 64
    traced = trace(model, data)
    same(traced, trace(find_backbone(model), padded))
    assert traced.images[0].size == (32, 50)
    assert traced.images[0].scale == (2, 2)
    assert traced.images[0].shape == (64, 100)

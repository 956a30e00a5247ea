"""The published COCO recipes, row by row, and ours, in what the configs build."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from published import DETECTORS, WIDTHS, Detector
from recipes import (
    CONFIGS,
    TABLES,
    batch_size,
    build_model,
    build_optimizer,
    decays,
    is_amp,
    learning_rate_of,
    learning_rates,
    load,
    names,
    norm_parameters,
    random_image,
    transforms,
)
from torch import nn

# After upstream's recipes for Swin: config, drop path, activation checkpointing, learning rate,
# weight decay, maximum norm of the gradient.
OURS = [
    ('dino-5scale_dat-pp-t_8xb2-12e_coco', 0.2, True, 1e-4, 1e-4, 0.1),
    ('dino-5scale_dat-pp-b_8xb2-12e_coco', 0.2, True, 1e-4, 1e-4, 0.1),
    ('mask2former_dat-pp-t_8xb2-lsj-50e_coco', 0.3, False, 1e-4, 0.05, 0.01),
    ('mask2former_dat-pp-s_8xb2-lsj-50e_coco', 0.3, False, 1e-4, 0.05, 0.01),
]
recipes = pytest.mark.parametrize('row', DETECTORS, ids=lambda row: row.config)
one_each = pytest.mark.parametrize('row', DETECTORS[::4], ids=lambda row: row.method)


def config(row: Detector) -> Config:
    return load(f'coco/{row.config}.py')


def test_every_config_is_covered() -> None:
    expected = {row.config for row in DETECTORS} | {name for name, *_ in OURS}
    assert {path.stem for path in (CONFIGS / 'coco').glob('*.py')} == expected


@recipes
def test_model_and_optimizer(row: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(row)
    model = build_model(cfg)
    backbone = model.backbone
    assert backbone.arch.embed_dims == [WIDTHS[row.size] * 2**i for i in range(4)]
    assert backbone.out_indices == ((1, 2, 3) if row.method == 'retinanet' else (0, 1, 2, 3))
    assert backbone.stages[-1][-1].drop_path.rate == pytest.approx(row.drop_path)
    assert all(stage.with_cp for stage in backbone.stages)
    assert backbone.init_cfg == dict(
        type='Pretrained', checkpoint=f'checkpoints/dat-pp-{row.size}_in1k.pth'
    )

    optimizer = build_optimizer(cfg, model, monkeypatch)
    assert isinstance(optimizer.optimizer, torch.optim.AdamW)
    assert optimizer.optimizer.defaults['betas'] == (0.9, 0.999)
    assert is_amp(optimizer) == row.amp
    assert not optimizer.clip_grad_kwargs
    assert set(learning_rate_of(model, optimizer).values()) == {row.lr}
    norms = norm_parameters(model, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm))
    for name, decay in decays(model, optimizer).items():
        free = name in norms or any(table in name for table in TABLES)
        assert decay == (0 if free else 0.05), name


@recipes
def test_batch(row: Detector) -> None:
    cfg = config(row)
    assert batch_size(cfg) == row.images
    assert cfg.auto_scale_lr.base_batch_size == row.gpus * row.images == 64
    assert cfg.train_cfg.max_epochs == row.epochs


# 1x and 3x at both learning rates.
@pytest.mark.parametrize(
    'row', [*DETECTORS[:2], *DETECTORS[4:6]], ids=lambda row: f'{row.epochs}-{row.lr}'
)
def test_schedule(row: Detector, tmp_path: Path) -> None:
    cfg = config(row)
    epoch = 600
    steps = [step * epoch for step in {12: (8, 11), 36: (27, 33)}[row.epochs]]
    wanted = [
        0,
        250,
        499,
        500,
        steps[0] - 1,
        steps[0],
        steps[1] - 1,
        steps[1],
        row.epochs * epoch - 1,
    ]
    start = 0.001
    factors = [start, start + (1 - start) * 250 / 499, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    found = learning_rates(cfg, epoch, tmp_path, wanted)
    assert found == pytest.approx([row.lr * factor for factor in factors])


@recipes
def test_train_pipeline(row: Detector) -> None:
    steps = transforms(config(row).train_dataloader.dataset.pipeline)
    assert names(steps) == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'RandomFlip',
        'RandomChoice',
        'PackDetInputs',
    ]
    _, annotations, flip, choice, _ = steps
    assert annotations.with_bbox
    assert annotations.with_mask == (row.method != 'retinanet')
    assert flip.prob == 0.5
    assert choice.prob is None  # both are equally likely
    first, second = (branch.transforms for branch in choice.transforms)
    assert names(first) == ['RandomChoiceResize']
    assert names(second) == ['RandomChoiceResize', 'RandomCrop', 'RandomChoiceResize']
    sides = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
    for resize in (first[0], second[2]):
        assert resize.scales == [(side, 1333) for side in sides]
        assert resize.resize.keep_ratio
    assert second[0].scales == [(400, 1333), (500, 1333), (600, 1333)]
    crop = second[1]
    assert (crop.crop_type, crop.crop_size) == ('absolute_range', (384, 600))
    assert crop.allow_negative_crop


@one_each
def test_train_sizes(row: Detector) -> None:
    """Both branches give a wide image one of the short sides, and at most 1333 for the long."""
    np.random.seed(0)
    choice = transforms(config(row).train_dataloader.dataset.pipeline)[3]
    sizes = [choice(dict(img=random_image(300, 600)))['img'].shape[:2] for _ in range(20)]
    assert max(max(size) for size in sizes) <= 1333
    assert {min(size) for size in sizes if max(size) < 1333} <= set(range(480, 801, 32))
    ratios = {round(width / height, 1) for height, width in sizes}
    assert 2.0 in ratios  # not cropped
    assert len(ratios) > 1  # cropped


@recipes
def test_test_pipeline(row: Detector) -> None:
    cfg = config(row)
    steps = transforms(cfg.test_dataloader.dataset.pipeline)
    assert names(steps)[:2] == ['LoadImageFromFile', 'Resize']
    assert steps[1](dict(img=random_image(480, 640)))['img'].shape == (800, 1067, 3)
    assert steps[1](dict(img=random_image(300, 900)))['img'].shape == (444, 1333, 3)
    preprocessor = build_model(cfg).data_preprocessor
    assert preprocessor.pad_size_divisor == 32
    assert preprocessor.mean.numel() == 3
    metric = cfg.test_evaluator.metric
    assert metric == ('bbox' if row.method == 'retinanet' else ['bbox', 'segm'])


@pytest.mark.parametrize(
    'row', [r for r in DETECTORS if r.method == 'mask-rcnn'], ids=lambda r: r.config
)
def test_mask_rcnn(row: Detector) -> None:
    model = build_model(config(row))
    # Five levels; the last one is a convolution of the backbone's last output.
    assert len(model.neck.fpn_convs) == 5
    assert model.neck.fpn_convs[4].conv.in_channels == WIDTHS[row.size] * 8
    assert type(model.rpn_head.loss_bbox).__name__ == 'L1Loss'
    assert type(model.roi_head.bbox_head.loss_bbox).__name__ == 'L1Loss'
    assert not model.roi_head.bbox_head.reg_decoded_bbox
    assert model.roi_head.bbox_assigner.match_low_quality
    proposals = model.train_cfg.rpn_proposal
    assert (proposals.nms_pre, proposals.max_per_img) == (2000, 1000)


@pytest.mark.parametrize(
    'row', [r for r in DETECTORS if r.method == 'cascade-mask-rcnn'], ids=lambda r: r.config
)
def test_cascade(row: Detector) -> None:
    model = build_model(config(row))
    assert len(model.neck.fpn_convs) == 4
    loss = model.rpn_head.loss_bbox
    assert (type(loss).__name__, loss.beta) == ('SmoothL1Loss', pytest.approx(1 / 9))
    proposals = model.train_cfg.rpn_proposal
    assert (proposals.nms_pre, proposals.max_per_img) == (2000, 2000)
    heads = model.roi_head.bbox_head
    stds = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
    assert [tuple(head.bbox_coder.stds) for head in heads] == stds
    for head, iou in zip(heads, (0.5, 0.6, 0.7)):
        assert [type(conv.bn).__name__ for conv in head.shared_convs] == ['SyncBatchNorm'] * 4
        assert [(fc.in_features, fc.out_features) for fc in head.shared_fcs] == [(12544, 1024)]
        assert head.fc_reg.out_features == 4 * 80  # one box per class
        assert head.reg_decoded_bbox
        assert (type(head.loss_bbox).__name__, head.loss_bbox.loss_weight) == ('GIoULoss', 10)
        assigner = model.roi_head.bbox_assigner[list(heads).index(head)]
        assert (assigner.pos_iou_thr, assigner.match_low_quality) == (iou, False)


@pytest.mark.parametrize(
    'row', [r for r in DETECTORS if r.method == 'retinanet'], ids=lambda r: r.config
)
def test_retinanet(row: Detector) -> None:
    model = build_model(config(row))
    width = WIDTHS[row.size]
    laterals = [conv.conv.in_channels for conv in model.neck.lateral_convs]
    assert laterals == [2 * width, 4 * width, 8 * width]
    assert len(model.neck.fpn_convs) == 5
    assert model.neck.fpn_convs[3].conv.in_channels == 8 * width
    assert type(model.bbox_head.loss_bbox).__name__ == 'L1Loss'
    assert type(model.bbox_head.loss_cls).__name__ == 'FocalLoss'


@pytest.mark.parametrize('ours', OURS, ids=lambda ours: ours[0])
def test_ours(ours: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    name, drop_path, with_cp, lr, weight_decay, clip = ours
    cfg = load(f'coco/{name}.py')
    model = build_model(cfg)
    assert model.backbone.stages[-1][-1].drop_path.rate == pytest.approx(drop_path)
    assert all(stage.with_cp == with_cp for stage in model.backbone.stages)
    optimizer = build_optimizer(cfg, model, monkeypatch)
    assert optimizer.clip_grad_kwargs['max_norm'] == clip
    for parameter, rate in learning_rate_of(model, optimizer).items():
        assert rate == pytest.approx(lr * (0.1 if parameter.startswith('backbone') else 1))
    found = decays(model, optimizer)
    if name.startswith('dino'):
        assert set(found.values()) == {weight_decay}
    else:
        norms = norm_parameters(
            model, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
        )
        embeddings = ('query_embed', 'query_feat', 'level_embed')
        for parameter, decay in found.items():
            free = parameter in norms or any(part in parameter for part in (*TABLES, *embeddings))
            assert decay == (0 if free else weight_decay), parameter
    assert cfg.auto_scale_lr.base_batch_size == 8 * batch_size(cfg) == 16

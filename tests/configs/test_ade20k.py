"""The published ADE20K recipes, row by row, and ours, in what the configs build."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmengine.config import Config
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


class Row(NamedTuple):
    """One segmentor."""

    head: str
    model: str
    drop_path: float

    @property
    def config(self) -> str:
        schedule = '8xb4-40k' if self.head == 'fpn' else '8xb2-160k'
        return f'dat-pp-{self.model}_{self.head}_{schedule}_ade20k-512x512'


ROWS = [
    Row('fpn', 'tiny', 0.4),
    Row('fpn', 'small', 0.4),
    Row('fpn', 'base', 0.7),
    Row('upernet', 'tiny', 0.3),
    Row('upernet', 'small', 0.5),
    Row('upernet', 'base', 0.7),
]
OURS = [Row('mask2former', model, 0.3) for model in ('tiny', 'small', 'base')]
WIDTHS = {'tiny': 64, 'small': 96, 'base': 128}
IMAGES = {'fpn': 4, 'upernet': 2}
ITERATIONS = {'fpn': 40_000, 'upernet': 160_000}
LR = {'fpn': 2e-4, 'upernet': 6e-5}
WEIGHT_DECAY = {'fpn': 1e-4, 'upernet': 0.01}
recipes = pytest.mark.parametrize('row', ROWS, ids=lambda row: row.config)


def config(row: Row) -> Config:
    return load(f'ade20k/{row.config}.py')


def test_every_config_is_covered() -> None:
    files = {path.stem for path in (CONFIGS / 'ade20k').glob('*.py')}
    assert files == {row.config for row in ROWS + OURS}


@recipes
def test_model_and_optimizer(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(row)
    model = build_model(cfg)
    backbone, width = model.backbone, WIDTHS[row.model]
    assert backbone.arch.embed_dims == [width * 2**i for i in range(4)]
    assert backbone.stages[-1][-1].drop_path.rate == pytest.approx(row.drop_path)
    blocks = [block for stage in backbone.stages for block in stage]
    assert all(block.with_cp == (row.head == 'upernet') for block in blocks)
    assert backbone.init_cfg == dict(
        type='Pretrained', checkpoint=f'checkpoints/dat-pp-{row.model}_in1k.pth'
    )
    head = model.decode_head
    assert (head.num_classes, type(head.loss_decode).__name__) == (150, 'CrossEntropyLoss')
    batch_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {type(norm).__name__ for norm in batch_norms} == {'SyncBatchNorm'}
    if row.head == 'fpn':
        assert [conv.conv.out_channels for conv in model.neck.fpn_convs] == [256] * 4
        assert head.channels == 128
        assert not model.with_auxiliary_head
    else:
        assert head.channels == 512
        auxiliary = model.auxiliary_head
        assert (auxiliary.in_index, auxiliary.in_channels, auxiliary.channels) == (
            2,
            4 * width,
            256,
        )
        assert auxiliary.loss_decode.loss_weight == 0.4

    optimizer = build_optimizer(cfg, model, monkeypatch)
    assert isinstance(optimizer.optimizer, torch.optim.AdamW)
    assert optimizer.optimizer.defaults['betas'] == (0.9, 0.999)
    assert not is_amp(optimizer)
    assert not optimizer.clip_grad_kwargs
    assert set(learning_rate_of(model, optimizer).values()) == {LR[row.head]}
    # The published rule is for names with "norm": the heads' batch norms are called otherwise.
    norms = norm_parameters(model, (nn.LayerNorm,))
    for name, decay in decays(model, optimizer).items():
        free = name in norms or any(table in name for table in TABLES)
        assert decay == (0 if free else WEIGHT_DECAY[row.head]), name


@pytest.mark.parametrize('row', ROWS[::3], ids=lambda row: row.head)
def test_schedule(row: Row, tmp_path: Path) -> None:
    length, lr = ITERATIONS[row.head], LR[row.head]
    wanted = [0, 750, 1500, length // 2, length - 1]
    found = learning_rates(config(row), 100, tmp_path, wanted)
    left = [1 - iteration / length for iteration in wanted]
    if row.head == 'fpn':
        expected = [lr * share**0.9 for share in left]
    else:  # mmengine ends the warm-up one iteration earlier
        warmup = [1e-6, 1e-6 + (1 - 1e-6) * 750 / 1499, 1, 1, 1]
        expected = [lr * share * factor for share, factor in zip(left, warmup)]
    assert found[0] == pytest.approx(expected[0])
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4 * lr)  # ends at 0, not just above


@recipes
def test_batch_and_length(row: Row) -> None:
    cfg = config(row)
    assert batch_size(cfg) == IMAGES[row.head]
    assert cfg.auto_scale_lr.base_batch_size == 8 * IMAGES[row.head]
    assert cfg.train_cfg.max_iters == ITERATIONS[row.head]


@recipes
def test_train_pipeline(row: Row) -> None:
    cfg = config(row)
    steps = transforms(cfg.train_dataloader.dataset.pipeline)
    assert names(steps) == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'RandomResize',
        'RandomCrop',
        'RandomFlip',
        'PhotoMetricDistortion',
        'PackSegInputs',
    ]
    _, annotations, resize, crop, flip, *_ = steps
    assert annotations.reduce_zero_label
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert resize.resize.keep_ratio
    assert (crop.crop_size, crop.cat_max_ratio) == ((512, 512), 0.75)
    assert flip.prob == 0.5
    np.random.seed(0)
    result = dict(img=random_image(400, 600), gt_seg_map=np.zeros((400, 600), np.uint8))
    result['seg_fields'] = ['gt_seg_map']
    for step in steps[2:-1]:
        result = step(result)
    assert max(result['img'].shape[:2]) <= 512
    preprocessor = build_model(cfg).data_preprocessor
    assert (preprocessor.size, preprocessor.seg_pad_val) == ((512, 512), 255)


@recipes
def test_test_pipeline(row: Row) -> None:
    """Whole images at (2048, 512), not padded to any multiple."""
    cfg = config(row)
    steps = transforms(cfg.test_dataloader.dataset.pipeline)
    assert names(steps)[:2] == ['LoadImageFromFile', 'Resize']
    image = steps[1](dict(img=random_image(300, 451)))['img']
    assert image.shape == (512, 770, 3)
    model = build_model(cfg)
    assert model.test_cfg.mode == 'whole'
    assert model.data_preprocessor.test_cfg is None


@recipes
def test_multi_scale(row: Row) -> None:
    cfg = config(row)
    assert cfg.tta_model.type == 'SegTTAModel'
    augment = transforms(cfg.tta_pipeline)[-1]
    kinds = [[step.type for step in choice] for choice in cfg.tta_pipeline[-1].transforms]
    assert kinds[:2] == [['Resize'] * 6, ['RandomFlip'] * 2]
    ways = [way.transforms for way in augment.subroutines]
    scales = {way[0].scale_factor for way in ways}
    assert {scale if isinstance(scale, float) else scale[0] for scale in scales} == {
        0.5,
        0.75,
        1.0,
        1.25,
        1.5,
        1.75,
    }
    assert {way[1].prob for way in ways} == {0.0, 1.0}
    assert len(ways) == 12


@pytest.mark.parametrize('row', OURS, ids=lambda row: row.config)
def test_ours(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('mmdet')
    cfg = config(row)
    model = build_model(cfg)
    assert model.backbone.stages[-1][-1].drop_path.rate == pytest.approx(row.drop_path)
    optimizer = build_optimizer(cfg, model, monkeypatch)
    assert optimizer.clip_grad_kwargs['max_norm'] == 0.01
    for name, rate in learning_rate_of(model, optimizer).items():
        assert rate == pytest.approx(1e-5 if name.startswith('backbone') else 1e-4), name
    norms = norm_parameters(model, (nn.LayerNorm, nn.GroupNorm))
    embeddings = ('query_embed', 'query_feat', 'level_embed')
    for name, decay in decays(model, optimizer).items():
        free = name in norms or any(part in name for part in (*TABLES, *embeddings))
        assert decay == (0 if free else 0.05), name
    assert (batch_size(cfg), cfg.train_cfg.max_iters) == (2, 160_000)

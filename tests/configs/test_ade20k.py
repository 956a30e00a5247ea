"""The published ADE20K recipes, row by row, and ours, in what the configs build."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from published import SEGMENTORS, WIDTHS, Segmentor
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

OURS = [f'dat-pp-{size}_mask2former_8xb2-160k_ade20k-512x512' for size in WIDTHS]
IMAGES = {'fpn': 4, 'upernet': 2}
ITERATIONS = {'fpn': 40_000, 'upernet': 160_000}
LR = {'fpn': 2e-4, 'upernet': 6e-5}
WEIGHT_DECAY = {'fpn': 1e-4, 'upernet': 0.01}
recipes = pytest.mark.parametrize('row', SEGMENTORS, ids=lambda row: row.config)


def config(row: Segmentor) -> Config:
    return load(f'ade20k/{row.config}.py')


def test_every_config_is_covered() -> None:
    files = {path.stem for path in (CONFIGS / 'ade20k').glob('*.py')}
    assert files == {*(row.config for row in SEGMENTORS), *OURS}


@recipes
def test_model_and_optimizer(row: Segmentor, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(row)
    model = build_model(cfg)
    backbone, width = model.backbone, WIDTHS[row.size]
    assert backbone.arch.embed_dims == [width * 2**i for i in range(4)]
    assert backbone.stages[-1][-1].drop_path.rate == pytest.approx(row.drop_path)
    assert all(stage.with_cp == (row.head == 'upernet') for stage in backbone.stages)
    assert backbone.init_cfg == dict(
        type='Pretrained', checkpoint=f'checkpoints/dat-pp-{row.size}_in1k.pth'
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
    assert is_amp(optimizer) == row.amp
    assert not optimizer.clip_grad_kwargs
    assert set(learning_rate_of(model, optimizer).values()) == {LR[row.head]}
    # The published rule matches "norm" in names; batch norms of the heads are named `bn`.
    norms = norm_parameters(model, (nn.LayerNorm,))
    for name, decay in decays(model, optimizer).items():
        free = name in norms or any(table in name for table in TABLES)
        assert decay == (0 if free else WEIGHT_DECAY[row.head]), name


@pytest.mark.parametrize('row', SEGMENTORS[::3], ids=lambda row: row.head)
def test_schedule(row: Segmentor, tmp_path: Path) -> None:
    length, lr = ITERATIONS[row.head], LR[row.head]
    wanted = [0, 750, 1500, length // 2, length - 1]
    found = learning_rates(config(row), 100, tmp_path, wanted)
    left = [1 - iteration / length for iteration in wanted]
    if row.head == 'fpn':
        expected = [lr * share**0.9 for share in left]
    else:  # mmengine completes the warm-up one iteration earlier
        warmup = [1e-6, 1e-6 + (1 - 1e-6) * 750 / 1499, 1, 1, 1]
        expected = [lr * share * factor for share, factor in zip(left, warmup)]
    assert found[0] == pytest.approx(expected[0])
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4 * lr)  # ends at 0, not just above


@recipes
def test_batch_and_length(row: Segmentor) -> None:
    cfg = config(row)
    assert batch_size(cfg) == IMAGES[row.head]
    assert cfg.auto_scale_lr.base_batch_size == 8 * IMAGES[row.head]
    assert cfg.train_cfg.max_iters == ITERATIONS[row.head]


@recipes
def test_train_pipeline(row: Segmentor) -> None:
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
def test_test_pipeline(row: Segmentor) -> None:
    """Whole images at (2048, 512), not padded to any multiple."""
    cfg = config(row)
    steps = transforms(cfg.test_dataloader.dataset.pipeline)
    assert names(steps)[:2] == ['LoadImageFromFile', 'Resize']
    image = steps[1](dict(img=random_image(300, 451)))['img']
    assert image.shape == (512, 770, 3)
    model = build_model(cfg)
    assert model.test_cfg.mode == 'whole'
    assert model.data_preprocessor.test_cfg is None


# Height x width of an image -> its sizes at ratios 0.5 to 1.75.
MULTI_SCALE = {
    (301, 451): [(256, 384), (384, 575), (512, 767), (640, 959), (768, 1151), (896, 1343)],
    (667, 500): [(342, 256), (512, 384), (683, 512), (854, 640), (1025, 768), (1195, 896)],
    (97, 801): [(124, 1024), (186, 1536), (248, 2048), (310, 2560), (372, 3072), (434, 3584)],
}


@recipes
@pytest.mark.parametrize('size', MULTI_SCALE)
def test_multi_scale(row: Segmentor, size: tuple[int, int], tmp_path: Path) -> None:
    """Images fit into (2048 r, 512 r), aspect ratio kept, each with its mirror image."""
    cfg = config(row)
    assert cfg.tta_model.type == 'SegTTAModel'
    image = random_image(*size)
    Image.fromarray(image).save(tmp_path / 'image.png')
    Image.fromarray(image[..., 0]).save(tmp_path / 'labels.png')
    result = dict(
        img_path=str(tmp_path / 'image.png'),
        seg_map_path=str(tmp_path / 'labels.png'),
        reduce_zero_label=True,
        seg_fields=[],
    )
    for step in transforms(cfg.tta_pipeline):
        result = step(result)
    found = [tuple(views.shape[1:]) for views in result['inputs']]
    assert found == [each for each in MULTI_SCALE[size] for _ in range(2)]
    for plain, flipped in zip(result['inputs'][::2], result['inputs'][1::2]):
        assert torch.equal(plain.flip(-1), flipped)
    # Labels keep the size of the image: predictions are resized to it.
    assert result['data_samples'][0].gt_sem_seg.shape == size


@pytest.mark.parametrize('name', OURS)
def test_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('mmdet')
    cfg = load(f'ade20k/{name}.py')
    model = build_model(cfg)
    assert model.backbone.stages[-1][-1].drop_path.rate == pytest.approx(0.3)
    optimizer = build_optimizer(cfg, model, monkeypatch)
    assert optimizer.clip_grad_kwargs['max_norm'] == 0.01
    for parameter, rate in learning_rate_of(model, optimizer).items():
        expected = 1e-5 if parameter.startswith('backbone') else 1e-4
        assert rate == pytest.approx(expected), parameter
    norms = norm_parameters(model, (nn.LayerNorm, nn.GroupNorm))
    embeddings = ('query_embed', 'query_feat', 'level_embed')
    for parameter, decay in decays(model, optimizer).items():
        free = parameter in norms or any(part in parameter for part in (*TABLES, *embeddings))
        assert decay == (0 if free else 0.05), parameter
    assert (batch_size(cfg), cfg.train_cfg.max_iters) == (2, 160_000)

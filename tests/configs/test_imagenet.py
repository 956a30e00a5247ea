"""The published ImageNet-1K recipes, row by row, in what the configs build."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from recipes import (
    TABLES,
    batch_size,
    build_model,
    build_optimizer,
    cosine,
    decays,
    is_amp,
    learning_rate_of,
    learning_rates,
    load,
    names,
    random_image,
    transforms,
)


class Row(NamedTuple):
    """One published model; rates are for 512 images."""

    config: str
    parameters: int
    drop_path: float
    gpus: int
    images: int
    size: int = 224
    epochs: int = 300
    warmup: int = 20
    lr: float = 5e-4
    min_lr: float = 5e-6
    weight_decay: float = 0.05
    clip: float = 5.0


FINE = dict(size=384, epochs=30, warmup=0, weight_decay=1e-8)
ROWS = [
    Row('dat-pp-tiny_32xb128_in1k', 23_962_876, 0.2, 32, 128),
    Row('dat-pp-small_32xb128_in1k', 53_127_366, 0.4, 32, 128),
    Row('dat-pp-base_64xb64_in1k', 93_690_640, 0.7, 64, 64),
    Row('dat-pp-base_64xb24_in1k-384px', 93_690_640, 0.6, 64, 24, lr=2e-5, min_lr=2e-7, **FINE),
    Row('dat-tiny_32xb128_in1k', 28_319_138, 0.2, 32, 128),
    Row('dat-small_32xb128_in1k', 49_700_402, 0.3, 32, 128),
    Row('dat-base_32xb128_in1k', 87_881_632, 0.5, 64, 64, warmup=50, lr=4e-4, clip=1.0),
    Row('dat-base_64xb24_in1k-384px', 88_178_272, 0.5, 64, 24, lr=2e-6, min_lr=1e-7, **FINE),
]
ABLATIONS = {
    'plain': 22_772_796,
    'overlapped': None,
    'overlapped-lpu': None,
    'window': None,
    'sra': None,
    'dwconv': None,
}
WARMUP_LR = 5e-7
ALL = [
    *ROWS,
    *(Row(f'dat-pp-tiny-{n}_32xb128_in1k', p, 0.2, 32, 128) for n, p in ABLATIONS.items()),
]
recipes = pytest.mark.parametrize('row', ALL, ids=lambda row: row.config)


def config(row: Row):
    return load(f'imagenet/{row.config}.py')


def test_every_config_is_covered() -> None:
    files = (Path(__file__).parents[2] / 'configs' / 'imagenet').glob('*.py')
    assert {path.stem for path in files} == {row.config for row in ALL}


@recipes
def test_model_and_optimizer(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(row)
    model = build_model(cfg)
    if row.parameters:
        assert sum(value.numel() for value in model.parameters()) == row.parameters
    assert model.backbone.stages[-1][-1].drop_path.rate == pytest.approx(row.drop_path)
    assert model.backbone.stages[0][0].drop_path.rate == 0
    assert not any(block.with_cp for stage in model.backbone.stages for block in stage)
    assert model.head.fc.out_features == 1000
    assert model.head.init_cfg is None

    optimizer = build_optimizer(cfg, model, monkeypatch)
    assert isinstance(optimizer.optimizer, torch.optim.AdamW)
    assert optimizer.optimizer.defaults['betas'] == (0.9, 0.999)
    assert optimizer.optimizer.defaults['eps'] == 1e-8
    assert is_amp(optimizer)
    assert optimizer.clip_grad_kwargs == dict(max_norm=row.clip)
    total = row.gpus * row.images
    for name, rate in learning_rate_of(model, optimizer).items():
        assert rate == pytest.approx(row.lr * total / 512), name
    for name, decay in decays(model, optimizer).items():
        value = model.get_parameter(name)
        free = value.dim() == 1 or name.endswith('.bias') or any(t in name for t in TABLES)
        assert decay == (0 if free else row.weight_decay), name


def test_neighborhood_bias_decays(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(ROWS[0])
    model = build_model(cfg)
    found = decays(model, build_optimizer(cfg, model, monkeypatch))
    assert {decay for name, decay in found.items() if name.endswith('.rpb')} == {0.05}
    assert {decay for name, decay in found.items() if name.endswith('.rpe_table')} == {0.0}


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.config)
def test_schedule(row: Row, tmp_path: Path) -> None:
    cfg = config(row)
    assert batch_size(cfg) == row.images
    total = row.gpus * row.images
    assert cfg.auto_scale_lr.base_batch_size == total
    epoch = 10
    length, warmup = row.epochs * epoch, row.warmup * epoch
    wanted = [0, warmup // 2, warmup, length // 2, length - 1]
    found = learning_rates(cfg, epoch, tmp_path, wanted)
    per_512 = [lr * 512 / total for lr in found]
    # The cosine counts from the first iteration on, also where there is a warm-up.
    for iteration, lr in zip(wanted, per_512):
        if iteration < warmup:  # mmengine reaches the full rate one iteration earlier
            share = iteration / (warmup - 1)
            assert lr == pytest.approx(WARMUP_LR + (row.lr - WARMUP_LR) * share)
        else:
            assert lr == pytest.approx(cosine(row.min_lr, row.lr, iteration / length))
    assert per_512[-1] == pytest.approx(row.min_lr, rel=0.05)


@pytest.mark.parametrize('row', [ROWS[0], ROWS[3], ROWS[7]], ids=lambda row: row.config)
def test_train_pipeline(row: Row) -> None:
    steps = transforms(config(row).train_dataloader.dataset.pipeline)
    assert names(steps) == [
        'LoadImageFromFile',
        'RandomResizedCrop',
        'RandomFlip',
        'RandAugment',
        'RandomErasing',
        'PackInputs',
    ]
    _, crop, flip, augment, erase, _ = steps
    assert (crop.scale, crop.interpolation, crop.backend) == (
        (row.size, row.size),
        'bicubic',
        'pillow',
    )
    assert flip.prob == 0.5
    assert (augment.num_policies, augment.magnitude_level, augment.magnitude_std) == (2, 9, 0.5)
    assert {policy['type'] for policy in augment.policies} >= {'AutoContrast', 'SolarizeAdd'}
    assert (erase.erase_prob, erase.mode) == (0.25, 'rand')
    result = dict(img=random_image(300, 500), gt_label=1)
    for step in steps[1:]:
        result = step(result)
    assert result['inputs'].shape == (3, row.size, row.size)


@recipes
def test_test_pipeline(row: Row) -> None:
    """At 224 a square of 256 is cropped; at 384 nothing is: the whole image is squeezed."""
    steps = transforms(config(row).test_dataloader.dataset.pipeline)
    assert names(steps)[0] == 'LoadImageFromFile'
    resize = steps[1]
    assert type(resize).__name__ == 'Resize'
    assert (resize.interpolation, resize.backend) == ('bicubic', 'pillow')
    image = random_image(300, 500)
    result = dict(img=image)
    sizes = []
    for step in steps[1:-1]:
        result = step(result)
        sizes.append(result['img'].shape[:2])
    assert sizes == ([(256, 256), (224, 224)] if row.size == 224 else [(384, 384)])
    assert steps[-1](result)['inputs'].shape == (3, row.size, row.size)


def test_mixing_and_loss() -> None:
    model = build_model(config(ROWS[0]))
    mixing = model.data_preprocessor.batch_augments
    assert [(type(a).__name__, a.alpha) for a in mixing.augments] == [
        ('Mixup', 0.8),
        ('CutMix', 1.0),
    ]
    assert mixing.probs is None  # always one of them, each as often
    loss = model.head.loss_module
    assert (type(loss).__name__, loss.label_smooth_val) == ('LabelSmoothLoss', 0.1)
    assert loss.mode == 'original'

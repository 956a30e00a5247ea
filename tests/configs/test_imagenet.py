"""The published ImageNet-1K recipes, row by row, in what the configs build."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import sampler
from published import CLASSIFIERS, Classifier
from real_layouts import write_imagenet
from recipes import (
    CONFIGS,
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
    train_loader,
    transforms,
)

ABLATIONS = {  # parameters
    'plain': 22_772_796,
    'overlapped': 23_649_276,
    'overlapped-lpu': 23_711_996,
    'window': 23_962_876,
    'sra': 27_102_618,
    'dwconv': 21_557_722,
}
WARMUP_LR = 5e-7
ALL = [
    *CLASSIFIERS,
    *(
        Classifier(f'dat-pp-tiny-{name}_32xb128_in1k', 'dat-t++', count, 0.2, 32, 128)
        for name, count in ABLATIONS.items()
    ),
]
recipes = pytest.mark.parametrize('row', ALL, ids=lambda row: row.config)


def config(row: Classifier) -> Config:
    return load(f'imagenet/{row.config}.py')


def test_every_config_is_covered() -> None:
    files = (CONFIGS / 'imagenet').glob('*.py')
    assert {path.stem for path in files} == {row.config for row in ALL}


@recipes
def test_model_and_optimizer(row: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(row)
    model = build_model(cfg)
    assert sum(value.numel() for value in model.parameters()) == row.parameters
    arch = cfg.model.backbone.arch
    assert (arch if isinstance(arch, str) else arch.base) == row.arch
    assert model.backbone.stages[-1][-1].drop_path.rate == pytest.approx(row.drop_path)
    assert model.backbone.stages[0][0].drop_path.rate == 0
    assert not any(stage.with_cp for stage in model.backbone.stages)
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
    cfg = config(CLASSIFIERS[0])
    model = build_model(cfg)
    found = decays(model, build_optimizer(cfg, model, monkeypatch))
    assert {decay for name, decay in found.items() if name.endswith('.rpb')} == {0.05}
    assert {decay for name, decay in found.items() if name.endswith('.rpe_table')} == {0.0}


@pytest.mark.parametrize('row', CLASSIFIERS, ids=lambda row: row.config)
def test_schedule(row: Classifier, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    'row', [CLASSIFIERS[0], CLASSIFIERS[3], CLASSIFIERS[7]], ids=lambda row: row.config
)
def test_train_pipeline(row: Classifier) -> None:
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
def test_test_pipeline(row: Classifier) -> None:
    """Images are resized to a square, whatever their aspect ratio, then cropped in the center."""
    steps = transforms(config(row).test_dataloader.dataset.pipeline)
    assert names(steps)[0] == 'LoadImageFromFile'
    resize = steps[1]
    assert type(resize).__name__ == 'Resize'
    assert (resize.interpolation, resize.backend) == ('bicubic', 'pillow')
    result = dict(img=random_image(300, 500))
    sizes = []
    for step in steps[1:-1]:
        result = step(result)
        sizes.append(result['img'].shape[:2])
    square, crop = (row.resize, row.resize), (row.size, row.size)
    assert sizes == ([square] if row.resize == row.size else [square, crop])
    assert steps[-1](result)['inputs'].shape == (3, row.size, row.size)


def test_mixing_and_loss() -> None:
    model = build_model(config(CLASSIFIERS[0]))
    mixing = model.data_preprocessor.batch_augments
    assert [(type(a).__name__, a.alpha) for a in mixing.augments] == [
        ('Mixup', 0.8),
        ('CutMix', 1.0),
    ]
    assert mixing.probs is None  # always one of them, each as often
    loss = model.head.loss_module
    assert (type(loss).__name__, loss.label_smooth_val) == ('LabelSmoothLoss', 0.1)
    assert loss.mode == 'original'


@pytest.mark.parametrize('row', CLASSIFIERS, ids=lambda row: row.config)
def test_last_incomplete_batch_is_dropped(row: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, 'get_dist_info', lambda: (0, row.gpus))
    assert len(train_loader(config(row), images=1_281_167)) == row.iterations


def test_dataset_smaller_than_a_batch(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would otherwise end after epochs without iterations, without a word."""
    write_imagenet(tmp_path / 'data' / 'imagenet', (40, 40), train=127)
    monkeypatch.chdir(tmp_path)
    config = CONFIGS / 'imagenet' / 'dat-pp-tiny_32xb128_in1k.py'
    outcome = run('train', config, '--work-dir', tmp_path / 'work', '--no-validate')
    assert outcome.code == 2
    assert 'train_dataloader: 127 samples per process' in outcome.errors[-1]
    assert not (tmp_path / 'work').exists()


# A few blocks in float32 on 32 images, for one epoch of 8 iterations.
TWO_PROCESSES = """
_base_ = '{configs}/imagenet/dat-pp-tiny_32xb128_in1k.py'
arch = dict(embed_dims=[8, 8, 16, 16], mixers=['N', 'N', 'D', 'D'], num_heads=[1, 1, 2, 2])
model = dict(backbone=dict(arch=dict(_delete_=True, **arch)), head=dict(in_channels=16))
train_dataloader = dict(batch_size=2, num_workers=0)
train_cfg = dict(max_epochs=1)
param_scheduler = None
optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
custom_hooks = [dict(type='RecordDraws', folder={folder!r})]
"""


@pytest.mark.slow
def test_every_process_has_its_own_random_stream(tmp_path: Path) -> None:
    """Two processes: augmentation and stochastic depth differ, the order of images is shared."""
    write_imagenet(tmp_path / 'data' / 'imagenet', (40, 40), train=32, val=2)
    config = tmp_path / 'config.py'
    config.write_text(TWO_PROCESSES.format(configs=CONFIGS, folder=str(tmp_path)))
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    script = Path(__file__).parent / 'random_draws.py'
    done = subprocess.run(
        [sys.executable, *launch, script, config, '--launcher', 'pytorch', '--no-validate'],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f'draws_{rank}.json').read_text()) for rank in (0, 1))
    assert len(first['lambda']) == len(second['lambda']) == 8
    assert not set(first['lambda']) & set(second['lambda'])
    for drawn in ('augment', 'dropped', 'box'):
        assert first[drawn] != second[drawn], drawn
        assert len(set(map(str, first[drawn]))) > 1, drawn
    # One permutation, of which each process takes every second image.
    assert len(first['images']) == len(second['images']) == 16
    assert len({*first['images'], *second['images']}) == 32

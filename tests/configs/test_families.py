"""One config per family through train and test, on small datasets in the layouts of the real ones.

The data is in the current folder, where the configs look for it; `--cfg-options` only make things
smaller. Each config runs twice: as it is, for two iterations or more on small images; and with a
few blocks on one repeated batch, on which the loss must fall.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import DEPTH, FAMILIES, REPEATED
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from real_layouts import write_ade20k, write_coco, write_imagenet

import dat_pp

CONFIGS = Path(__file__).parents[2] / 'configs'
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three datasets and the checkpoints that the configs start from."""
    folder = tmp_path_factory.mktemp('families')
    write_imagenet(folder / 'data' / 'imagenet', (240, 240))
    write_coco(folder / 'data' / 'coco', (160, 120))
    write_ade20k(folder / 'data' / 'ade', (160, 160))
    (folder / 'checkpoints').mkdir()
    state = {f'backbone.{k}': v for k, v in dat_pp.DAT('dat-t++').state_dict().items()}
    torch.save({'state_dict': state}, folder / 'checkpoints' / 'dat-pp-tiny_in1k.pth')
    deep = FAMILIES['classification 384']
    cfg = Config.fromfile(CONFIGS / f'{deep.config}.py')
    cfg.model.backbone.arch = dict(base='dat-b++', mixers=deep.depth.strip('[]').split(','))
    init_default_scope('mmpretrain')
    state = MODELS.build(cfg.model).state_dict()
    torch.save({'state_dict': state}, folder / 'checkpoints' / 'dat-pp-base_in1k.pth')
    return folder


@pytest.fixture
def work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work directory whose checkpoints are deleted afterwards, beside the data."""
    monkeypatch.chdir(folder)
    work = tmp_path / 'work'
    yield work
    for file in work.rglob('*.pth'):
        file.unlink()


def losses(work: Path) -> list[float]:
    (log,) = work.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line['loss'] for line in lines if 'loss' in line]


@pytest.mark.parametrize('name', FAMILIES)
def test_trains_and_tests(name: str, run: Callable, work: Path) -> None:
    """Model, augmentation, precision, schedule, checkpoint and metrics are the config's own."""
    family = FAMILIES[name]
    config = CONFIGS / f'{family.config}.py'
    options = ['--cfg-options', *family.options(2, family.depth)]
    trained = run('train', config, '--work-dir', work, *options)
    assert trained.code == 0, trained.errors
    assert len(losses(work)) >= 2
    assert all(math.isfinite(loss) for loss in losses(work))
    checkpoint = (work / 'last_checkpoint').read_text()
    assert checkpoint.endswith('_2.pth')

    tested = run('test', config, checkpoint, '--work-dir', work, *options)
    assert tested.code == 0, tested.errors
    log = Path(tested.runner.log_dir) / f'{tested.runner.timestamp}.json'
    metrics = json.loads(log.read_text())
    for metric in family.metrics:
        assert 0 <= metrics[metric] <= 100, metric


@pytest.mark.parametrize('name', FAMILIES)
def test_loss_falls_on_a_repeated_batch(name: str, run: Callable, work: Path) -> None:
    family = FAMILIES[name]
    options = family.options(8, DEPTH)
    options += f'{REPEATED.format(lr=family.lr)} {family.fixed} {family.light}'.split()
    outcome = run(
        'train', CONFIGS / f'{family.config}.py', '--work-dir', work, '--no-validate',
        '--cfg-options', *options,
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    values = losses(work)
    print(name, [round(value, 3) for value in values])
    assert len(values) == 8
    assert sum(values[-3:]) / 3 < 0.8 * values[0], values

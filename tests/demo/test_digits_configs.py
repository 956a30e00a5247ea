"""Each digits config builds, reads its data, and takes a training step that reaches every part."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, save_checkpoint
from torch import nn
from torch.utils.data import DataLoader

import dat_pp  # noqa: F401

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs' / 'digits'

LIBRARIES = {'classification': 'mmpretrain', 'mask-rcnn': 'mmdet', 'upernet': 'mmseg'}
DENSE = ['mask-rcnn', 'upernet']


@pytest.fixture(scope='module')
def classifier(tmp_path_factory) -> tuple[Path, dict]:
    """A checkpoint as mmengine saves it, and the state dict in it."""
    config = Config.fromfile(CONFIGS / 'classification.py')
    init_default_scope('mmpretrain')
    model = MODELS.build(config.model)
    path = tmp_path_factory.mktemp('classifier') / 'epoch_1.pth'
    save_checkpoint(dict(meta={}, state_dict=model.state_dict()), str(path))
    return path, model.state_dict()


def load(name: str, data_root: Path) -> Config:
    pytest.importorskip(LIBRARIES[name])
    config = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope(config.default_scope)
    for split in ('train', 'val'):
        loader = config[f'{split}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        assert loader.dataset.data_root.startswith('data/digits/')
        loader.dataset.data_root = str(
            data_root / loader.dataset.data_root.removeprefix('data/digits/')
        )
    return config


@pytest.mark.parametrize('name', LIBRARIES)
def test_a_step_and_a_prediction(name, data_root):
    config = load(name, data_root)
    config.model.backbone.pop('init_cfg')
    torch.manual_seed(0)
    model = MODELS.build(config.model).train()
    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert torch.isfinite(loss)
    loss.backward()
    unused = [key for key, value in model.named_parameters() if value.grad is None]
    assert not unused
    assert all(torch.isfinite(value.grad).all() for value in model.parameters())

    model.eval()
    batch = next(iter(Runner.build_dataloader(config.val_dataloader, seed=0)))
    with torch.no_grad():
        results = model.val_step(batch)
    assert len(results) == 2
    if name == 'classification':
        assert all(0 <= int(result.pred_label) < 10 for result in results)
    elif name == 'mask-rcnn':
        assert all(result.pred_instances.masks.shape[1:] == (96, 96) for result in results)
    else:
        assert all(result.pred_sem_seg.data.shape == (1, 96, 96) for result in results)


@pytest.mark.parametrize('name', DENSE)
def test_dense_tasks_start_from_the_classifier(name, data_root, classifier):
    path, weights = classifier
    config = load(name, data_root)
    config.model.backbone.init_cfg.checkpoint = str(path)
    model = MODELS.build(config.model)
    model.init_weights()
    state = model.backbone.state_dict()
    shared = [key for key in state if not key.startswith('norm')]
    assert len(shared) > 100
    for key in shared:
        torch.testing.assert_close(state[key], weights[f'backbone.{key}'], msg=key)
    assert all((model.backbone.get_parameter(f'norm{i}.weight') == 1).all() for i in range(4))


@pytest.mark.slow
@pytest.mark.parametrize('name', LIBRARIES)
def test_evaluated_on_digits_that_training_does_not_see(name, data_root):
    config = load(name, data_root)

    def names(split: str) -> set[str]:
        loader = Runner.build_dataloader(config[f'{split}_dataloader'], seed=0)
        return {loader.dataset.get_data_info(i)['img_path'] for i in range(len(loader.dataset))}

    assert names('train')
    assert names('val')
    assert not names('train') & names('val')
    assert config.test_dataloader == Config.fromfile(CONFIGS / f'{name}.py').val_dataloader


@pytest.mark.parametrize('name', DENSE)
def test_the_weights_they_name_are_what_the_demo_publishes(name):
    checkpoint = Config.fromfile(CONFIGS / f'{name}.py').model.backbone.init_cfg.checkpoint
    assert checkpoint == 'work_dirs/digits/classification.pth'


class OneWeight(BaseModel):
    """A model that trains in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor, mode: str) -> dict[str, torch.Tensor]:
        return dict(loss=self.weight.sum())


@pytest.mark.parametrize('name', LIBRARIES)
def test_the_schedule_follows_the_number_of_epochs(name, tmp_path):
    """The learning rate ends at its minimum when only `train_cfg.max_epochs` is changed."""
    config = Config.fromfile(CONFIGS / f'{name}.py')
    samples = [dict(inputs=torch.zeros(1))] * 60
    runner = Runner(
        OneWeight(),
        str(tmp_path),
        train_dataloader=DataLoader(samples),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=config.optim_wrapper.optimizer),
        param_scheduler=config.param_scheduler,
        default_scope='mmengine',
        experiment_name=f'schedule_{name}',
    )
    runner.train()
    assert runner.optim_wrapper.get_lr()['lr'][0] < 2e-5

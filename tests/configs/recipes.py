"""Build what a config describes, so that tests look at objects and not at text."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmengine.runner import Runner
from torch import nn

import dat_pp  # noqa: F401

CONFIGS = Path(__file__).parents[2] / 'configs'
TABLES = ('rpe_table', 'relative_position_bias_table')


def load(path: str) -> Config:
    """A config of ours; skips where its library is not installed."""
    cfg = Config.fromfile(CONFIGS / path)
    pytest.importorskip(cfg.default_scope)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        init_default_scope(cfg.default_scope)
    return cfg


_models: dict[str, nn.Module] = {}


def build_model(cfg: Config) -> nn.Module:
    """The model on the meta device, without memory for its weights; built once for all tests."""
    if cfg.filename not in _models:
        model = dict(cfg.model)
        if cfg.get('data_preprocessor'):
            model.setdefault('data_preprocessor', cfg.data_preprocessor)
        with torch.device('meta'):
            _models[cfg.filename] = MODELS.build(model)
    return _models[cfg.filename]


def build_optimizer(cfg: Config, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> OptimWrapper:
    # mmengine refuses mixed precision where there is no GPU; here it is only built.
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return build_optim_wrapper(model, cfg.optim_wrapper)


def decays(model: nn.Module, optimizer: OptimWrapper) -> dict[str, float]:
    """Weight decay of every parameter by its name."""
    names = {id(value): name for name, value in model.named_parameters()}
    found = {}
    for group in optimizer.optimizer.param_groups:
        for value in group['params']:
            found[names[id(value)]] = group['weight_decay']
    assert found.keys() == set(names.values())
    return found


def learning_rate_of(model: nn.Module, optimizer: OptimWrapper) -> dict[str, float]:
    """Learning rate of every parameter by its name."""
    names = {id(value): name for name, value in model.named_parameters()}
    return {
        names[id(value)]: group['lr']
        for group in optimizer.optimizer.param_groups
        for value in group['params']
    }


def norm_parameters(model: nn.Module, kinds: tuple[type, ...]) -> set[str]:
    return {
        f'{name}.{kind}'
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        for kind in ('weight', 'bias')
    }


def is_amp(optimizer: OptimWrapper) -> bool:
    """Whether it trains in mixed precision, in which case the loss scale must be dynamic."""
    if not isinstance(optimizer, AmpOptimWrapper):
        return False
    assert type(optimizer.loss_scaler).__name__ == 'GradScaler'
    assert optimizer._scale_update_param is None  # a number would be a constant scale
    return True


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def learning_rates(
    cfg: Config, epoch_length: int, work_dir: Path, wanted: list[int]
) -> list[float]:
    """The learning rate at the given iterations, from running the config's schedulers."""
    model = _Tiny()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), cfg.optim_wrapper.optimizer.lr))
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=torch.utils.data.DataLoader(range(epoch_length)),
        train_cfg=cfg.train_cfg,
        optim_wrapper=optimizer,
        param_scheduler=cfg.param_scheduler,
        experiment_name=work_dir.name,
        log_level='ERROR',
    )
    runner._train_loop = runner.build_train_loop(cfg.train_cfg)
    schedulers = runner.build_param_scheduler(cfg.param_scheduler)
    found = {}
    optimizer.optimizer.step()  # schedulers warn if there was none
    for iteration in range(runner.max_iters):
        if iteration in wanted:
            found[iteration] = optimizer.get_lr()['lr'][0]
        for scheduler in schedulers:
            if not scheduler.by_epoch or (iteration + 1) % epoch_length == 0:
                scheduler.step()
    assert max(wanted) < runner.max_iters
    return [found[iteration] for iteration in wanted]


def train_loader(cfg: Config, images: int = 64) -> torch.utils.data.DataLoader:
    """The training loader as the runner builds it, for a dataset of so many images."""
    loader = dict(cfg.train_dataloader, dataset=range(images), num_workers=0)
    loader.pop('persistent_workers', None)
    return Runner.build_dataloader(loader)


def batch_size(cfg: Config) -> int:
    """Images per iteration and process."""
    loader = train_loader(cfg)
    return loader.batch_size or loader.batch_sampler.batch_size


def transforms(pipeline: list[dict]) -> list:
    """The transforms of a pipeline."""
    return [TRANSFORMS.build(step) for step in pipeline]


def names(steps: list) -> list[str]:
    return [type(step).__name__ for step in steps]


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cosine(low: float, high: float, progress: float) -> float:
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2

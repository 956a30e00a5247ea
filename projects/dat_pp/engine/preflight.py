"""Checks before a run writes anything: the model, its checkpoints, and the evaluators' files.

The model is built on trial and thrown away, so that a mistake is found before a work directory
exists. Each check raises a UserError with the config key, the path or value, what was expected and
what to do. Datasets are checked by :mod:`.datasets`.
"""

import os
import os.path as osp
from copy import deepcopy

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..weights import compare, read_checkpoint
from .config import class_name
from .datasets import is_local
from .errors import UserError, user_errors
from .noise import silence

CONVERT = 'a published file is first converted by tools/model_converters/published_to_mmlab.py'


def check_file(path: str, key: str, advice: str = '') -> None:
    """Check that a file exists, unless it is a URL."""
    if is_local(path) and not osp.isfile(path):
        raise UserError(f'{key}: no such file: {path}{advice}')


def check_writable(path: str, key: str) -> None:
    """Check that a file can be written; missing folders will be created."""
    if not is_local(path):
        return
    existing = osp.abspath(path)
    if osp.isdir(existing):
        raise UserError(f'{key}: {path} is a folder, expected a file')
    while not osp.lexists(existing):
        existing = osp.dirname(existing)
    if existing != osp.abspath(path) and not osp.isdir(existing):
        raise UserError(f'{key}: cannot write {path}: {existing} is not a folder')
    if not os.access(existing, os.W_OK):
        raise UserError(f'{key}: cannot write {path}: no permission to write to {existing}')


def check_model(cfg: Config, pretrained: bool = True) -> nn.Module:
    """Build a config's model.

    Args:
        cfg: The config.
        pretrained: Also load the weights that an ``init_cfg`` of the model names.

    Raises:
        UserError: The model cannot be built, or a checkpoint is missing or does not fit.
    """
    with silence(), user_errors('model'):
        model_cfg = deepcopy(cfg.model)  # mmdet changes configs while it builds
        if cfg.get('data_preprocessor'):
            model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = MODELS.build(model_cfg)
    for name, module in model.named_modules() if pretrained else ():
        init_cfg = getattr(module, 'init_cfg', None) or []
        for item in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
            if class_name(item.get('type')) in ('Pretrained', 'PretrainedInit'):
                key = '.'.join(filter(None, ('model', name, 'init_cfg.checkpoint')))
                scratch = f'or start from scratch with --cfg-options {key.rpartition(".")[0]}=None'
                check_file(item['checkpoint'], key, f'; download it, {scratch}')
                with silence(), user_errors(key, f'; name another checkpoint, {scratch}'):
                    module.init_weights()
    return model


def check_checkpoint(model: nn.Module, path: str, key: str) -> None:
    """Check that a checkpoint holds exactly the model's parameters and buffers.

    mmengine only warns about what does not fit and goes on with random weights.
    """
    mismatch = compare(model, _read_weights(path, key))
    if mismatch:
        raise UserError(
            f'{key}: {path} does not fit the model: {mismatch}; give a checkpoint of this config'
        )


def check_start(model: nn.Module, path: str, key: str = 'load_from') -> None:
    """Check that a checkpoint to start from fills at least half of the backbone.

    Heads may differ.
    """
    scratch = f'--cfg-options {key}=None'
    check_file(path, key, f'; put it there ({CONVERT}), or start from scratch with {scratch}')
    state = model.state_dict()
    backbone = {name: value for name, value in state.items() if name.startswith('backbone.')}
    mismatch = compare(backbone, _read_weights(path, key))
    fitting = len(backbone) - len(mismatch.missing) - len(mismatch.sizes)
    if fitting < len(backbone) / 2:
        raise UserError(
            f'{key}: {path} does not match the model: it fits {fitting} of the {len(backbone)} '
            f'weights of the backbone; give a checkpoint of the same backbone ({CONVERT})'
        )


def check_evaluator(cfg: Config, name: str) -> None:
    """Check the annotation files that the metrics of ``cfg[name]`` read on their own."""
    metrics = cfg.get(name) or []
    for metric in metrics if isinstance(metrics, list | tuple) else [metrics]:
        if isinstance(metric, dict) and metric.get('ann_file'):
            check_file(metric['ann_file'], f'{name}.ann_file')


def _read_weights(path: str, key: str) -> dict[str, Tensor]:
    """Read what mmengine's runner will load: it knows no entry but ``state_dict``."""
    with silence(), user_errors(key):
        return read_checkpoint(path, entries=['state_dict']).weights

"""Checks before anything is written: files, data sets, the model and its checkpoints.

Everything is built once on trial and thrown away, so that a mistake is found before a work
directory exists. Each check raises UserError with the path or value, what was expected and the
config key. Data sets are checked by the first process only.
"""

import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn as nn
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from PIL import Image

from common import UserError, is_first_process, message_of, silence, user_errors


def is_local(path: Any) -> bool:
    return isinstance(path, str) and '://' not in path


def check_file(path: str, key: str) -> None:
    if is_local(path) and not osp.isfile(path):
        raise UserError(f'{key}: no such file: {path}')


def check_model(cfg: Config, pretrained: bool = True) -> nn.Module:
    """Build the model and, with ``pretrained``, load the weights that its ``init_cfg`` names."""
    with silence(), user_errors('model'):
        model_cfg = dict(cfg.model)
        if cfg.get('data_preprocessor'):
            model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = MODELS.build(model_cfg)
    for name, module in model.named_modules() if pretrained else ():
        init_cfg = getattr(module, 'init_cfg', None) or []
        for item in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
            if item.get('type') == 'Pretrained':
                key = '.'.join(filter(None, ('model', name, 'init_cfg.checkpoint')))
                check_file(item['checkpoint'], key)
                with silence(), user_errors(key):
                    module.init_weights()
    return model


def check_checkpoint(model: nn.Module, path: str, key: str) -> None:
    """The checkpoint must hold exactly the model's parameters and buffers.

    mmengine only warns about what does not fit and goes on with random weights.
    """
    check_file(path, key)
    with silence(), user_errors(f'{key}: cannot read {path}'):
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
        state = checkpoint.get('state_dict', checkpoint)
        state = {name.removeprefix('module.'): value for name, value in state.items()}
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f'{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}'
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = [
        f'{len(names)} {kind} (first: {names[0]})'
        for names, kind in (
            (missing, 'missing'),
            (unexpected, 'unknown'),
            (shapes, 'of another shape'),
        )
        if names
    ]
    if problems:
        raise UserError(f'{key}: {path} does not fit the model: weights ' + ', '.join(problems))


def check_dataloader(cfg: Config, name: str) -> None:
    """Check the data sets under ``cfg[name]``, inside wrappers too, and build each once."""
    if cfg.get(name) and is_first_process():
        _check_dataset(cfg[name].dataset, f'{name}.dataset')


def check_evaluator(cfg: Config, name: str) -> None:
    """Evaluators that read annotations again, as COCO's do, need the file as well."""
    metrics = cfg.get(name) or []
    for metric in metrics if isinstance(metrics, list | tuple) else [metrics]:
        if isinstance(metric, dict) and metric.get('ann_file'):
            check_file(metric['ann_file'], f'{name}.ann_file')


def _check_dataset(cfg: dict, key: str) -> None:
    if 'dataset' in cfg:
        return _check_dataset(cfg['dataset'], f'{key}.dataset')
    if 'datasets' in cfg:
        for index, child in enumerate(cfg['datasets']):
            _check_dataset(child, f'{key}.datasets[{index}]')
        return None

    root = cfg.get('data_root')
    if root and is_local(root) and not osp.isdir(root) and not cfg.get('download', False):
        raise UserError(f'{key}.data_root: no such folder: {root}')
    with silence(), user_errors(key):
        try:
            dataset = DATASETS.build({**cfg, 'lazy_init': True})
        except TypeError as error:
            if 'lazy_init' not in str(error):
                raise
            return None  # not an MMLab data set: nothing is known about its files
    if not getattr(dataset, 'download', False):
        _check_paths(dataset, key)
    dataset.serialize_data = False  # mmengine cannot serialize an empty list
    with silence(), user_errors(key):
        dataset.full_init()
        sample = dataset.get_data_info(0) if len(dataset) else None
    if sample is None:
        raise UserError(
            f'{key}: no samples; looked for {_described(dataset)}, after filter_cfg '
            f'{cfg.get("filter_cfg")}'
        )
    for field in ('img_path', 'seg_map_path'):
        path = sample.get(field)
        if is_local(path) and not osp.isfile(path):
            raise UserError(f'{key}: {field} of the first sample does not exist: {path}')
    return None


def _check_paths(dataset: Any, key: str) -> None:
    """Annotation file and folders, as the data set joined them with its ``data_root``."""
    ann_file = getattr(dataset, 'ann_file', '')
    if ann_file and is_local(ann_file) and not osp.exists(ann_file):
        raise UserError(f'{key}.ann_file: no such file: {ann_file}')
    prefixes = getattr(dataset, 'data_prefix', None) or {}
    for name, path in prefixes.items():
        if path and is_local(path) and not osp.isdir(path):
            raise UserError(f'{key}.data_prefix.{name}: no such folder: {path}')


def _described(dataset: Any) -> str:
    places = {'ann_file': getattr(dataset, 'ann_file', ''), **(dataset.data_prefix or {})}
    return ', '.join(f'{name} {place}' for name, place in places.items() if place)


@contextmanager
def reading_errors(runner: Runner, *loaders: str) -> Iterator[None]:
    """Turn a failure to read an image or label map while running into a UserError naming it."""
    try:
        yield
    except Exception as error:
        text = message_of(error)
        if isinstance(error, FileNotFoundError) or text.startswith('failed to load image'):
            raise UserError(f'data: {text}') from error
        # OpenCV's and Pillow's own errors do not name the file.
        if type(error).__module__.split('.')[0] in ('cv2', 'PIL') or isinstance(error, OSError):
            for loader in loaders:
                path = _unreadable_file(runner.cfg, loader)
                if path:
                    raise UserError(f'data: cannot read {path}: {text}') from error
        raise


def _unreadable_file(cfg: Config, loader: str) -> str | None:
    """The first file of a loader's data sets that Pillow cannot open; label maps are decoded."""
    if not cfg.get(loader):
        return None
    dataset = DATASETS.build(cfg[loader].dataset)
    for index in range(len(dataset)):
        sample = dataset.get_data_info(index)
        for field in ('seg_map_path', 'img_path'):
            path = sample.get(field)
            if not is_local(path):
                continue
            try:
                with Image.open(path) as image:
                    if field == 'seg_map_path':
                        image.load()
            except OSError:
                return path
    return None

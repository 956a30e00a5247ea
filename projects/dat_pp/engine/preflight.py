"""Checks before anything is written: files, data sets, the model and its checkpoints.

Everything is built once on trial and thrown away, so that a mistake is found before a work
directory exists. Each check raises UserError with the path or value, what was expected and the
config key. Data sets are checked by the first process only.
"""

import os
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch.nn as nn
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor

from ..weights import compare, read_checkpoint
from .class_counts import as_option, check_class_count
from .errors import UserError, is_first_process, message_of, silence, user_errors

# Where to read how a data set is prepared.
READMES = {
    'ImageNet': 'configs/imagenet/README.md',
    'CocoDataset': 'configs/coco/README.md',
    'ADE20KDataset': 'configs/ade20k/README.md',
}


def is_local(path: Any) -> bool:
    return isinstance(path, str) and '://' not in path


def check_file(path: str, key: str, advice: str = '') -> None:
    if is_local(path) and not osp.isfile(path):
        raise UserError(f'{key}: no such file: {path}{advice}')


def check_model(cfg: Config, pretrained: bool = True) -> nn.Module:
    """Build the model and, with ``pretrained``, load the weights that its ``init_cfg`` names."""
    with silence(), user_errors('model'):
        model_cfg = deepcopy(cfg.model)  # mmdet changes configs while it builds
        if cfg.get('data_preprocessor'):
            model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = MODELS.build(model_cfg)
    for name, module in model.named_modules() if pretrained else ():
        init_cfg = getattr(module, 'init_cfg', None) or []
        for item in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
            if item.get('type') == 'Pretrained':
                key = '.'.join(filter(None, ('model', name, 'init_cfg.checkpoint')))
                scratch = f'or start from scratch with --cfg-options {key.rpartition(".")[0]}=None'
                path = item['checkpoint']
                check_file(path, key, f'; download it, {scratch}')
                with silence(), user_errors(key, f'; name another checkpoint, {scratch}'):
                    module.init_weights()
    return model


def check_checkpoint(model: nn.Module, path: str, key: str) -> None:
    """The checkpoint must hold exactly the model's parameters and buffers.

    mmengine only warns about what does not fit and goes on with random weights.
    """
    mismatch = compare(model, _read_weights(path, key))
    if mismatch:
        raise UserError(
            f'{key}: {path} does not fit the model: {mismatch}; give a checkpoint of this config'
        )


def check_start(model: nn.Module, path: str, key: str = 'load_from') -> None:
    """A checkpoint to start from must fill at least half of the backbone; heads may differ."""
    converted = (
        'a published file is first converted by tools/model_converters/published_to_mmlab.py'
    )
    scratch = f'--cfg-options {key}=None'
    check_file(path, key, f'; put it there ({converted}), or start from scratch with {scratch}')
    state = model.state_dict()
    backbone = {name: value for name, value in state.items() if name.startswith('backbone.')}
    mismatch = compare(backbone, _read_weights(path, key))
    fitting = len(backbone) - len(mismatch.missing) - len(mismatch.sizes)
    if fitting < len(backbone) / 2:
        raise UserError(
            f'{key}: {path} is of another model: it fits {fitting} of the {len(backbone)} '
            f'weights of the backbone; give a checkpoint of the same backbone ({converted})'
        )


def _read_weights(path: str, key: str) -> dict[str, Tensor]:
    """What mmengine's runner will load: it knows no entry but ``state_dict``."""
    with silence(), user_errors(key):
        return read_checkpoint(path, entries=['state_dict']).weights


def check_dataloader(cfg: Config, name: str) -> None:
    """Check the data sets under ``cfg[name]``, inside wrappers too, and build each once."""
    if cfg.get(name) and is_first_process():
        for dataset_cfg, key in leaf_datasets(cfg[name].dataset, f'{name}.dataset'):
            dataset = open_dataset(dataset_cfg, key)
            if dataset is not None:
                _check_samples(dataset, dataset_cfg, key)
                check_class_count(cfg.model, dataset, key)


def leaf_datasets(cfg: dict, key: str) -> Iterator[tuple[dict, str]]:
    """The data sets inside wrappers, each with its config key."""
    if 'dataset' in cfg:
        yield from leaf_datasets(cfg['dataset'], f'{key}.dataset')
    elif 'datasets' in cfg:
        for index, child in enumerate(cfg['datasets']):
            yield from leaf_datasets(child, f'{key}.datasets[{index}]')
    else:
        yield cfg, key


def check_evaluator(cfg: Config, name: str) -> None:
    """Evaluators that read annotations again, as COCO's do, need the file as well."""
    metrics = cfg.get(name) or []
    for metric in metrics if isinstance(metrics, list | tuple) else [metrics]:
        if isinstance(metric, dict) and metric.get('ann_file'):
            check_file(metric['ann_file'], f'{name}.ann_file')


def open_dataset(cfg: dict, key: str) -> Any | None:
    """A data set before it reads its annotations; its file and folders are there.

    None if it is not one of MMLab's: nothing is known about its files then.
    """
    root = cfg.get('data_root')
    if root and is_local(root) and not osp.isdir(root) and not cfg.get('download', False):
        raise UserError(f'{key}.data_root: no such folder: {root}{_advice(cfg, key, "data_root")}')
    with silence(), user_errors(key):
        try:
            dataset = DATASETS.build({**cfg, 'lazy_init': True})
        except TypeError as error:
            if 'lazy_init' not in str(error):
                raise
            return None
    if not getattr(dataset, 'download', False):
        _check_paths(dataset, cfg, key)
    dataset.serialize_data = False  # mmengine cannot serialize an empty list
    return dataset


def _check_samples(dataset: Any, cfg: dict, key: str) -> None:
    folders, classes = class_folders(dataset), dataset.metainfo.get('classes')
    if folders is not None and classes and len(folders) != len(classes):
        raise UserError(
            f'{key}: {image_folder(dataset)} has {len(folders)} class folders, expected '
            f'{len(classes)}, one per class{_see(cfg)}'
        )
    with silence(), user_errors(f'{key}: cannot read {described(dataset)}'):
        dataset.full_init()
        sample = dataset.get_data_info(0) if len(dataset) else None
    if sample is None:
        raise UserError(
            f'{key}: no samples; looked for {described(dataset)}, after filter_cfg '
            f'{cfg.get("filter_cfg")}'
        )
    for field in ('img_path', 'seg_map_path'):
        path = sample.get(field)
        if is_local(path) and not osp.isfile(path):
            raise UserError(f'{key}: {field} of the first sample does not exist: {path}{_see(cfg)}')


def _check_paths(dataset: Any, cfg: dict, key: str) -> None:
    """Annotation file and folders, as the data set joined them with its ``data_root``."""
    ann_file = getattr(dataset, 'ann_file', '')
    if ann_file and is_local(ann_file) and not osp.exists(ann_file):
        advice = _advice(cfg, key, 'ann_file')
        raise UserError(f'{key}.ann_file: no such file: {ann_file}{advice}')
    for name, path in (getattr(dataset, 'data_prefix', None) or {}).items():
        if path and is_local(path) and not osp.isdir(path):
            # Given as a text, it has no key below it that could be set.
            given = cfg.get('data_prefix')
            option = f'data_prefix.{name}' if isinstance(given, dict) else 'data_prefix'
            inside = ', with one folder per class' if _has_class_folders(dataset) else ''
            raise UserError(
                f'{key}.data_prefix.{name}: no such folder: {path}{inside}'
                + _advice(cfg, key, option)
            )
    if class_folders(dataset) == []:
        raise UserError(
            f'{key}: {image_folder(dataset)} has no folders, expected one per class; sort the '
            f'images into class folders{_see(cfg)}'
        )


def _has_class_folders(dataset: Any) -> bool:
    """Whether the folder of an image says its class, as with mmpretrain's CustomDataset."""
    return (
        hasattr(dataset, 'extensions')
        and getattr(dataset, 'with_label', False)
        and not dataset.ann_file
    )


def image_folder(dataset: Any) -> str:
    return dataset.data_prefix.get('img_path') or dataset.data_root


def class_folders(dataset: Any) -> list[str] | None:
    """Names of the class folders, in the order of the classes; None where there are none."""
    if not _has_class_folders(dataset) or not is_local(image_folder(dataset)):
        return None
    return sorted(entry.name for entry in os.scandir(image_folder(dataset)) if entry.is_dir())


def _advice(cfg: dict, key: str, setting: str) -> str:
    option = f'{as_option(key)}.{setting}'
    return f'; put or link the data there{_see(cfg)}, or set --cfg-options {option}=...'


def _see(cfg: dict) -> str:
    # With classes of its own it is other data in the same format.
    own = (cfg.get('metainfo') or {}).get('classes')
    readme = None if own else READMES.get(str(cfg.get('type')).rpartition('.')[2])
    return f', see {readme}' if readme else ''


def described(dataset: Any) -> str:
    """Annotation file and folders, for messages."""
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

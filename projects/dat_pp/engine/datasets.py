"""Open the datasets of a config and check that their files are there."""

import os
import os.path as osp
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from .class_counts import as_option, check_class_count
from .config import class_name
from .errors import UserError, user_errors
from .noise import silence
from .processes import world_size

# Dataset type -> where to read how its data is prepared.
READMES = {
    'ImageNet': 'configs/imagenet/README.md',
    'CocoDataset': 'configs/coco/README.md',
    'ADE20KDataset': 'configs/ade20k/README.md',
}


def is_local(path: Any) -> bool:
    """Whether this is a path on this machine, not a URL or an object store's."""
    return isinstance(path, str) and '://' not in path


def check_dataloader(cfg: Config, name: str) -> list[Any | None]:
    """Build the datasets of ``cfg[name]``, inside wrappers too, and check them.

    Args:
        cfg: The whole config.
        name: Key of a dataloader; it may be missing.

    Returns:
        The datasets in the order of :func:`leaf_datasets`, loaded; None for each that only the
        runner should build: it is not MMLab's, or would download its data.

    Raises:
        UserError: Files or samples are missing, samples are fewer than a batch, or the model has
            another number of classes.
    """
    if not cfg.get(name):
        return []
    datasets = []
    for dataset_cfg, key in leaf_datasets(cfg[name].dataset, f'{name}.dataset'):
        dataset = open_dataset(dataset_cfg, key)
        if dataset is not None and not _downloads(dataset):
            _check_samples(dataset, dataset_cfg, key)
        if dataset is not None:
            check_class_count(cfg.model, dataset, key)
        datasets.append(None if dataset is None or _downloads(dataset) else dataset)
    _check_batch(cfg[name], datasets, name, world_size(cfg.get('launcher', 'none')))
    return datasets


def _check_batch(loader: dict, datasets: list[Any | None], name: str, processes: int) -> None:
    """Refuse an epoch without iterations, which drop_last makes of a small dataset."""
    wrapped = 'dataset' in loader['dataset'] or 'datasets' in loader['dataset']
    sampler = class_name((loader.get('sampler') or {}).get('type'))
    if not loader.get('drop_last') or sampler != 'DefaultSampler' or wrapped:
        return
    (dataset,) = datasets
    if dataset is None:
        return
    images, batch = -(-len(dataset) // processes), loader.get('batch_size', 1)
    if images < batch:
        raise UserError(
            f'{name}: {images} samples per process do not fill a batch of {batch}, '
            f'and drop_last drops it; set {name}.batch_size or {name}.drop_last=False'
        )


def leaf_datasets(cfg: dict, key: str = 'dataset') -> Iterator[tuple[dict, str]]:
    """Yield the config of each dataset inside wrappers, with its config key."""
    if 'dataset' in cfg:
        yield from leaf_datasets(cfg['dataset'], f'{key}.dataset')
    elif 'datasets' in cfg:
        for index, child in enumerate(cfg['datasets']):
            yield from leaf_datasets(child, f'{key}.datasets[{index}]')
    else:
        yield cfg, key


def open_dataset(cfg: dict, key: str) -> Any | None:
    """Build a dataset without loading its annotations.

    Returns:
        The dataset, or None if it is not MMLab's: nothing is known about its files then.

    Raises:
        UserError: It cannot be built, or its annotation file or a folder does not exist.
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
    if not _downloads(dataset):
        _check_paths(dataset, cfg, key)
    return dataset


def load(dataset: Any) -> None:
    """Load a dataset's annotations, once: ``dataset.full_init()``, also of an empty one."""
    # mmengine fails to serialize an empty list.
    serialize = getattr(dataset, 'serialize_data', False)
    dataset.serialize_data = False
    dataset.full_init()
    if serialize and len(dataset):
        dataset.data_bytes, dataset.data_address = dataset._serialize_data()
        dataset.serialize_data = True


def class_folders(dataset: Any) -> list[str] | None:
    """Names of the class folders in the order of the classes; None if the dataset has none."""
    if not _has_class_folders(dataset) or not is_local(image_folder(dataset)):
        return None
    return sorted(entry.name for entry in os.scandir(image_folder(dataset)) if entry.is_dir())


def image_folder(dataset: Any) -> str:
    """The folder of a dataset's images."""
    return dataset.data_prefix.get('img_path') or dataset.data_root


def described(dataset: Any) -> str:
    """Annotation file and folders of a dataset, for messages."""
    places = {'ann_file': getattr(dataset, 'ann_file', ''), **(dataset.data_prefix or {})}
    return ', '.join(f'{name} {place}' for name, place in places.items() if place)


def _downloads(dataset: Any) -> bool:
    return getattr(dataset, 'download', False)


def _check_samples(dataset: Any, cfg: dict, key: str) -> None:
    """Load a dataset and check its number of class folders and the files of its first sample."""
    folders, classes = class_folders(dataset), dataset.metainfo.get('classes')
    if folders is not None and classes and len(folders) != len(classes):
        raise UserError(
            f'{key}: {image_folder(dataset)} has {len(folders)} class folders, expected '
            f'{len(classes)}, one per class{_see(cfg)}'
        )
    with silence(), user_errors(f'{key}: cannot read {described(dataset)}'):
        load(dataset)
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
    """Check annotation file and folders, as the dataset joined them with its ``data_root``."""
    ann_file = getattr(dataset, 'ann_file', '')
    if ann_file and is_local(ann_file) and not osp.exists(ann_file):
        advice = _advice(cfg, key, 'ann_file')
        raise UserError(f'{key}.ann_file: no such file: {ann_file}{advice}')
    for name, path in (getattr(dataset, 'data_prefix', None) or {}).items():
        if path and is_local(path) and not osp.isdir(path):
            # Given as one string, it has no key below it that could be set.
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
    """Whether an image's folder says its class, as with mmpretrain's CustomDataset."""
    return (
        hasattr(dataset, 'extensions')
        and getattr(dataset, 'with_label', False)
        and not dataset.ann_file
    )


def _advice(cfg: dict, key: str, setting: str) -> str:
    option = f'{as_option(key)}.{setting}'
    return f'; put or link the data there{_see(cfg)}, or set --cfg-options {option}=...'


def _see(cfg: dict) -> str:
    # A config with classes of its own is about other data in the same format.
    own = (cfg.get('metainfo') or {}).get('classes')
    readme = None if own else READMES.get(class_name(cfg.get('type')))
    return f', see {readme}' if readme else ''

"""Convert a published DAT or DAT++ checkpoint to a file that a config of this package loads.

    python tools/model_converters/published_to_mmlab.py SRC DST [--config CONFIG] [--to hub]

SRC is a classification file (weights under ``model``), or a detection or segmentation file of
mmdet 2.x or mmseg 0.x (under ``state_dict``). Weights of heads are kept. The config is found among
those of the package: its model has exactly the names and shapes of the file. A model of your own,
for example with another number of classes, needs its own config: ``--config``. Where several
configs fit, DST is the same for all of them, and all are printed.

With --to hub, SRC is a classifier and DST a folder in the hub format, which needs neither a config
nor MMLab: dat_pp.DATClassifier.from_pretrained and timm load it.

Reading SRC runs no code: classes and functions that it names are never called.
"""

import argparse
import os
import os.path as osp
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.config import Config
from torch import Tensor, nn

from .. import __version__
from ..catalog import root
from ..factory import PUBLISHED, create_model
from ..hub import sha256
from ..models.arch import resolve_arch
from ..weights import (
    Checkpoint,
    compare,
    convert_published,
    is_published,
    read_checkpoint,
    some,
)
from .config import read_config
from .errors import UserError, user_errors
from .preflight import check_model


@dataclass(frozen=True)
class Family:
    """Models with the same head."""

    title: str
    prefix: str
    """Prefix of a weight that no family before this one has."""
    configs: str


FAMILIES = (
    Family('classifier', 'head.fc.', 'imagenet/*.py'),
    Family('RetinaNet', 'bbox_head.retina_cls.', 'coco/retinanet_*.py'),
    Family('Cascade Mask R-CNN', 'roi_head.mask_head.0.', 'coco/cascade-mask-rcnn_*.py'),
    Family('Mask R-CNN', 'roi_head.mask_head.', 'coco/mask-rcnn_*.py'),
    Family('Semantic FPN', 'decode_head.scale_heads.', 'ade20k/*_fpn_*.py'),
    Family('UperNet', 'decode_head.psp_modules.', 'ade20k/*_upernet_*.py'),
)


def read_published(path: Path) -> tuple[Checkpoint, list[str]]:
    """Read a published file; also return the names of its entries other than weights and meta."""
    with user_errors('SRC'):
        source = read_checkpoint(path)
    if not is_published(source.weights):
        if any('stem.conv1.' in name for name in source.weights):
            raise UserError(f'SRC: {path} has the names of dat_pp already: use it as it is')
        raise UserError(
            f'SRC: {path} is not a DAT checkpoint: there is no patch_proj.0.weight; '
            f'its weights are {some(list(source.weights))}'
        )
    others = [str(name) for name in source.content if name not in (source.entry, 'meta')]
    return source, others if source.entry else []


def family_of(weights: Mapping[str, Tensor]) -> Family | None:
    """The family that the head belongs to; ``weights`` have our names."""
    return next((f for f in FAMILIES if any(name.startswith(f.prefix) for name in weights)), None)


@cache
def config_of(path: Path) -> Config:
    return read_config(argparse.Namespace(config=osp.relpath(path), cfg_options=None))


@cache
def build(path: Path) -> nn.Module:
    """The model of a config, on the meta device."""
    cfg = config_of(path)
    with user_errors(f'config {osp.relpath(path)}'), torch.device('meta'):
        return check_model(cfg, pretrained=False)


def configs_of(family: Family) -> list[Path]:
    found = sorted(installed('configs').glob(family.configs))
    if not found:
        raise UserError(f'no config of a {family.title}, configs/{family.configs}: give --config')
    return found


def installed(name: str) -> Path:
    """Path of a file or folder that comes with the package; no link, in an editable install."""
    return (root() / name).resolve()


def fitting_configs(src: Path, weights: Mapping[str, Tensor], forced: Path | None) -> list[Path]:
    """The configs whose models have exactly these names and shapes; at least one."""
    what, hint = 'does not fit', ''
    if forced is not None:
        paths = [forced]
    elif family := family_of(weights):
        paths = configs_of(family)
        what = f'is a {family.title} that fits no config; the closest is'
        hint = '. If it is a model of your own, give its config with --config'
    else:
        raise UserError(
            f'SRC: {src} has a DAT backbone, but not the head of a '
            + ', '.join(family.title for family in FAMILIES)
            + '; give the config with --config, or, for the backbone alone, use the file as it is: '
            "init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    problems = {path: compare(build(path), weights) for path in paths}
    fitting = [path for path in paths if not problems[path]]
    if fitting:
        return fitting
    closest = min(paths, key=lambda path: len(problems[path]))
    raise UserError(f'SRC: {src} {what} {osp.relpath(closest)}: {problems[closest]}{hint}')


def trained_like(cfg: Config, content: Mapping[str, Any]) -> bool:
    """Whether a config agrees with everything that the file tells about its training."""
    meta = _entry(content, 'meta')
    data = _entry(_entry(content, 'config'), 'DATA')
    schedule = cfg.get('train_cfg') or {}
    pairs = (
        (meta.get('epoch'), schedule.get('max_epochs')),
        (meta.get('iter'), schedule.get('max_iters')),
        (data.get('IMG_SIZE'), _test_size(cfg)),
    )
    return all(said == stated for said, stated in pairs if None not in (said, stated))


def _entry(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An entry that is a dict; else an empty one."""
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _test_size(cfg: Config) -> int | None:
    """Side of the images in the last resizing or cropping step of the test pipeline."""
    loader = cfg.get('test_dataloader') or {}
    sizes = [
        step.get('crop_size', step.get('scale'))
        for step in (loader.get('dataset') or {}).get('pipeline', [])
        if 'crop_size' in step or 'scale' in step
    ]
    size = sizes[-1] if sizes else None
    return size[0] if isinstance(size, list | tuple) else size


def expected_result(path: Path) -> str:
    """The published metrics of a config's model, from the metafile beside it."""
    metafile = path.parent / 'metafile.yml'
    if not metafile.is_file():
        return 'not stated'
    with user_errors(f'cannot read {metafile}'):
        models = yaml.safe_load(metafile.read_text()).get('Models') or []
        metrics = {
            name: value
            for model in models
            if path.as_posix().endswith('/' + model.get('Config', f'{model["Name"]}.py'))
            for result in model.get('Results') or []
            for name, value in result['Metrics'].items()
        }
    return ', '.join(f'{name} {value}' for name, value in metrics.items()) or 'not stated'


def variant_of(cfg: Config) -> str:
    arch = cfg.model.backbone.get('arch')
    if not isinstance(arch, dict):
        return str(arch)
    changes = ', '.join(f'{key} {value}' for key, value in arch.items() if key != 'base')
    return f'{arch["base"]} with {changes}' if 'base' in arch else f'DAT with {changes}'


def meta_of(src: Path, content: Mapping[str, Any]) -> dict:
    """Source of the weights, and their classes in the form that mmdet 3 and mmseg 1 read."""
    old = _entry(content, 'meta')
    dataset: dict[str, Any] = {}
    with user_errors(f'SRC: {src}: CLASSES and PALETTE in its meta'):
        if old.get('CLASSES'):
            dataset['classes'] = tuple(str(name) for name in old['CLASSES'])
        if old.get('PALETTE'):
            dataset['palette'] = [tuple(int(part) for part in rgb) for rgb in old['PALETTE']]
    meta = dict(dat_pp_version=__version__, source=dict(file=src.name, sha256=sha256(src)))
    return meta | (dict(dataset_meta=dataset) if dataset else {})


def check_target(path: Path) -> None:
    if osp.lexists(path):
        raise UserError(f'DST: {path} exists: nothing written, choose another name or remove it')


def write_file(content: dict, path: Path) -> None:
    """Write atomically: save under a temporary name, then rename."""
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    with user_errors(f'DST: cannot write {path}'):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(content, partial)
            check_target(path)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_hub(src: Path, weights: Mapping[str, Tensor], config: Path, dst: Path) -> None:
    """Write a classifier in the hub format; those of our configs are published, as Apache-2.0."""
    cfg = config_of(config)
    backbone = cfg.model.backbone.to_dict()
    name: Any = resolve_arch(backbone.get('arch', 'dat-t++'))
    for key, published in PUBLISHED.items():
        if name == resolve_arch(published.arch) and _test_size(cfg) == published.input_size:
            name = key  # has the preprocessing of the published model
            break
    with torch.device('meta'):
        model = create_model(
            name,
            num_classes=len(weights['head.fc.weight']),
            in_channels=backbone.get('in_channels', 3),
        )
    own = {name.removeprefix('backbone.'): value for name, value in weights.items()}
    model.load_state_dict(own, assign=True)
    with user_errors(f'DST: cannot write {dst}'):
        model.save_pretrained(
            dst,
            license='apache-2.0' if config.is_relative_to(installed('configs')) else None,
            source=f'Converted from `{src.name}` (SHA-256 `{sha256(src)}`).',
        )


def report(
    paths: list[Path], left_out: list[str], weights: dict[str, Tensor], dst: Path, hub: bool
) -> None:
    model, cfg, family = build(paths[0]), config_of(paths[0]), family_of(weights)
    count = sum(parameter.numel() for parameter in model.parameters())
    tool = osp.relpath(installed('tools/test.py'))
    print(f'model     {family.title if family else cfg.model.type}')
    print(f'variant   {variant_of(cfg)}')
    print(f'weights   {len(weights)} tensors, {count / 1e6:.2f} M parameters')
    print(f'left out  {", ".join(left_out) or "nothing"}')
    if len(paths) > 1:
        print(f'{len(paths)} configs fit: the accuracy tells which one it is')
    for path in paths:
        print(f'config    {osp.relpath(path)}')
        print(f'expected  {expected_result(path)}')
        if hub:
            continue
        command = shlex.join(['python', tool, osp.relpath(path), str(dst)])
        print(f'test      {command}')
        if cfg.get('default_scope') == 'mmseg':
            print(f'          {command} --tta')
    if hub:
        print(f'use       dat_pp.DATClassifier.from_pretrained({str(dst)!r})')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', type=Path, metavar='SRC', help='published checkpoint')
    parser.add_argument(
        'dst',
        type=Path,
        metavar='DST',
        help='file to write, or folder with --to hub; must not exist',
    )
    parser.add_argument('--config', type=Path, help='config of the model that the weights must fit')
    parser.add_argument(
        '--to',
        choices=('mmlab', 'hub'),
        default='mmlab',
        help='format of DST: a checkpoint for configs, or a folder for from_pretrained and timm',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_target(args.dst)
    source, left_out = read_published(args.src)
    with user_errors(f'SRC: {args.src}'):
        weights = convert_published(source.weights)
    hub = args.to == 'hub'
    if hub and 'head.fc.weight' not in weights:
        raise UserError(f'--to hub: {args.src} is no classifier; convert it without --to hub')
    if len(source.weights) > len(weights):
        left_out.insert(0, f'{len(source.weights) - len(weights)} buffers')
    paths = fitting_configs(args.src, weights, args.config and args.config.resolve())
    paths = [path for path in paths if trained_like(config_of(path), source.content)] or paths
    if hub:
        if len(paths) > 1:
            listed = ', '.join(osp.relpath(path) for path in paths)
            raise UserError(
                f'--to hub: {len(paths)} configs fit, choose one with --config: {listed}'
            )
        write_hub(args.src, weights, paths[0], args.dst)
    else:
        write_file(dict(meta=meta_of(args.src, source.content), state_dict=weights), args.dst)
    report(paths, left_out, weights, args.dst, hub)

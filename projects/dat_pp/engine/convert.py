"""Convert a published DAT or DAT++ checkpoint to a file that a config here loads, name for name.

    python tools/model_converters/published_to_mmlab.py SRC DST [--config CONFIG]

SRC is a classification file (weights under ``model``), or a detection or segmentation file of
mmdet 2.x or mmseg 0.x (under ``state_dict``). Weights of heads are kept. The config is the one in
configs/ whose model has exactly the file's names and shapes; a model of your own, for example with
another number of classes, needs its own config: ``--config``. Where several fit, the file is the
same for all, and all are printed.

Only tensors and plain data are read: classes and functions that SRC names are never called.
"""

import argparse
import hashlib
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

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Kind:
    """A kind of model, how it is recognised, and which configs are of it."""

    title: str
    sign: str  # how a weight is called that no kind before this one has
    configs: str


KINDS = (
    Kind('classification', 'head.fc.', 'imagenet/*.py'),
    Kind('RetinaNet', 'bbox_head.retina_cls.', 'coco/retinanet_*.py'),
    Kind('Cascade Mask R-CNN', 'roi_head.mask_head.0.', 'coco/cascade-mask-rcnn_*.py'),
    Kind('Mask R-CNN', 'roi_head.mask_head.', 'coco/mask-rcnn_*.py'),
    Kind('Semantic FPN', 'decode_head.scale_heads.', 'ade20k/*_fpn_*.py'),
    Kind('UperNet', 'decode_head.psp_modules.', 'ade20k/*_upernet_*.py'),
)


def read_published(path: Path) -> tuple[Checkpoint, list[str]]:
    """A published file, and the names of what it holds beside weights and ``meta``."""
    with user_errors('SRC'):
        source = read_checkpoint(path)
    if not is_published(source.weights):
        if any('stem.conv1.' in name for name in source.weights):
            raise UserError(f'SRC: {path} has the names of dat_pp already: use it as it is')
        raise UserError(
            f'SRC: {path} is of another model than DAT: there is no patch_proj.0.weight; '
            f'its weights are {some(list(source.weights))}'
        )
    others = [str(name) for name in source.content if name not in (source.entry, 'meta')]
    return source, others if source.entry else []


def kind_of(weights: Mapping[str, Tensor]) -> Kind | None:
    """What the heads belong to; the weights under our names."""
    return next((k for k in KINDS if any(name.startswith(k.sign) for name in weights)), None)


@cache
def config_of(path: Path) -> Config:
    return read_config(argparse.Namespace(config=osp.relpath(path), cfg_options=None))


@cache
def build(path: Path) -> nn.Module:
    """A config's model, without values."""
    cfg = config_of(path)
    with user_errors(f'config {osp.relpath(path)}'), torch.device('meta'):
        return check_model(cfg, pretrained=False)


def candidates(kind: Kind) -> list[Path]:
    """The configs of a kind."""
    found = sorted((ROOT / 'configs').glob(kind.configs))
    if not found:
        raise UserError(f'no config of a {kind.title}, configs/{kind.configs}: give --config')
    return found


def fitting_configs(src: Path, weights: Mapping[str, Tensor], forced: Path | None) -> list[Path]:
    """The configs whose models have exactly these names and shapes; at least one."""
    kind = kind_of(weights)
    if forced is None and kind is None:
        raise UserError(
            f'SRC: {src} has a DAT backbone, but not the head of a '
            + ', '.join(kind.title for kind in KINDS)
            + '; give the config with --config, or, for the backbone alone, use the file as it is: '
            "init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    paths = candidates(kind) if forced is None else [forced]
    problems = {path: compare(build(path), weights) for path in paths}
    fitting = [path for path in paths if not problems[path]]
    if fitting:
        return fitting
    closest = min(paths, key=lambda path: len(problems[path]))
    what = 'does not fit' if forced else f'is a {kind.title} that fits no config; the closest is'
    hint = '' if forced else '. If it is a model of your own, give its config with --config'
    raise UserError(f'SRC: {src} {what} {osp.relpath(closest)}: {problems[closest]}{hint}')


def trained_like(cfg: Config, content: Mapping[str, Any]) -> bool:
    """Whether nothing that a file says about its training speaks against a config."""
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
    """What a dict has under a key, if that is a dict as well."""
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _test_size(cfg: Config) -> int | None:
    """Side of the images that a classifier is tested on."""
    loader = cfg.get('test_dataloader') or {}
    sizes = [
        step.get('crop_size', step.get('scale'))
        for step in (loader.get('dataset') or {}).get('pipeline', [])
        if 'crop_size' in step or 'scale' in step
    ]
    size = sizes[-1] if sizes else None
    return size[0] if isinstance(size, list | tuple) else size


def expected_result(path: Path) -> str:
    """What the metafile beside a config says that its model reaches."""
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
    """Where the weights came from, and what their classes are, as mmdet 3 and mmseg 1 read it."""
    digest = hashlib.sha256()
    with src.open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    old = _entry(content, 'meta')
    dataset = {}
    with user_errors(f'SRC: {src}: CLASSES and PALETTE in its meta'):
        if old.get('CLASSES'):
            dataset['classes'] = tuple(str(name) for name in old['CLASSES'])
        if old.get('PALETTE'):
            dataset['palette'] = [tuple(int(part) for part in rgb) for rgb in old['PALETTE']]
    meta = dict(dat_pp_version=__version__, source=dict(file=src.name, sha256=digest.hexdigest()))
    return meta | (dict(dataset_meta=dataset) if dataset else {})


def check_target(path: Path) -> None:
    if osp.lexists(path):
        raise UserError(f'DST: {path} exists: nothing written, choose another name or remove it')


def write_file(content: dict, path: Path) -> None:
    """Save under a temporary name first: what is seen under ``path`` is complete."""
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    with user_errors(f'DST: cannot write {path}'):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(content, partial)
            check_target(path)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def report(paths: list[Path], left_out: list[str], weights: dict[str, Tensor], dst: Path) -> None:
    model, cfg, kind = build(paths[0]), config_of(paths[0]), kind_of(weights)
    count = sum(parameter.numel() for parameter in model.parameters())
    tool = osp.relpath(ROOT / 'tools' / 'test.py')
    print(f'kind      {kind.title if kind else cfg.model.type}')
    print(f'variant   {variant_of(cfg)}')
    print(f'weights   {len(weights)} tensors, {count / 1e6:.2f} M parameters')
    print(f'left out  {", ".join(left_out) or "nothing"}')
    if len(paths) > 1:
        print(f'{len(paths)} configs have these names: the result shows which one it is')
    for path in paths:
        command = shlex.join(['python', tool, osp.relpath(path), str(dst)])
        print(f'config    {osp.relpath(path)}')
        print(f'expected  {expected_result(path)}')
        print(f'test      {command}')
        if cfg.get('default_scope') == 'mmseg':
            print(f'          {command} --tta')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', type=Path, metavar='SRC', help='published checkpoint')
    parser.add_argument('dst', type=Path, metavar='DST', help='file to write; must not exist')
    parser.add_argument('--config', type=Path, help='the config that the weights must fit')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_target(args.dst)
    source, left_out = read_published(args.src)
    with user_errors(f'SRC: {args.src}'):
        weights = convert_published(source.weights)
    if len(source.weights) > len(weights):
        left_out.insert(0, f'{len(source.weights) - len(weights)} buffers')
    paths = fitting_configs(args.src, weights, args.config and args.config.resolve())
    paths = [path for path in paths if trained_like(config_of(path), source.content)] or paths
    write_file(dict(meta=meta_of(args.src, source.content), state_dict=weights), args.dst)
    report(paths, left_out, weights, args.dst)

"""Test a classifier, detector or segmentor: the config's ``default_scope`` says which."""

import argparse
import os.path as osp
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from mmengine.evaluator.metric import BaseMetric
from mmengine.runner import Runner

from .datasets import check_dataloader
from .errors import UserError
from .file_errors import file_errors
from .launch import (
    base_parser,
    build_runner,
    leave_process_group,
    load_config,
    set_dataloader_defaults,
)
from .preflight import check_checkpoint, check_evaluator, check_model, check_writable


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = base_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        metavar='FILE.pkl',
        help='write the predictions to a pickle file: a list of one dict per image',
    )
    parser.add_argument('--show-dir', metavar='DIR', help='draw the predictions to this folder')
    parser.add_argument('--show', action='store_true', help='draw the predictions in a window')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds to show each window')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args(argv)


def merge_args(cfg: Config, args: argparse.Namespace) -> None:
    """Write the testing arguments into the config."""
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out: {args.out} must end in .pkl or .pickle')
    if args.out:
        check_writable(args.out, '--out')
    missing = [
        f'test_{name}'
        for name in ('dataloader', 'cfg', 'evaluator')
        if cfg.get(f'test_{name}') is None
    ]
    if missing:
        raise UserError(f'config {args.config}: nothing to test: {", ".join(missing)} not set')
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.show or args.show_dir:
        _draw(cfg, args)
    if args.tta:
        _augment(cfg, args)
    set_dataloader_defaults(cfg)


def _draw(cfg: Config, args: argparse.Namespace) -> None:
    """Turn on drawing: the libraries' visualization hooks do the same under different names."""
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise UserError('--show, --show-dir: the config has no default_hooks.visualization')
    hook.update(show=args.show, wait_time=args.wait_time)
    # Absolute: mmdet would put a relative folder under the work directory.
    folder = osp.abspath(args.show_dir) if args.show_dir else None
    if cfg.get('default_scope') == 'mmpretrain':
        hook.update(enable=True, interval=1, out_dir=folder)
        return
    hook.draw = True
    if cfg.get('default_scope') == 'mmdet':
        hook.test_out_dir = folder
    elif folder:
        cfg.visualizer.save_dir = folder


def _augment(cfg: Config, args: argparse.Namespace) -> None:
    """Test with the config's ``tta_model`` and ``tta_pipeline``, or with flips if it has none."""
    scope = cfg.get('default_scope')
    if scope == 'mmpretrain' and (args.show or args.show_dir):
        raise UserError(
            '--tta: mmpretrain cannot draw augmented images; leave out --show, --show-dir'
        )
    if scope == 'mmdet' and {**cfg.model, **cfg.model.get('roi_head', {})}.get('mask_head'):
        raise UserError('--tta: mmdet has none for instance segmentation, only for boxes')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if scope not in ('mmpretrain', 'mmdet'):
        for key in ('tta_model', 'tta_pipeline'):
            if key not in cfg:
                raise UserError(f'--tta: the config has no {key}')
    elif 'tta_pipeline' not in cfg:
        cfg.tta_pipeline = deepcopy(dataset.pipeline)
        pack = cfg.tta_pipeline[-1]
        if scope == 'mmdet':  # merging the predictions needs to know which were flipped
            meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
            pack.meta_keys = (*pack.get('meta_keys', meta_keys), 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        cfg.tta_pipeline[-1] = dict(type='TestTimeAug', transforms=[flips, [pack]])
    if 'tta_model' not in cfg:
        nms = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
        cfg.tta_model = (
            dict(type='AverageClsScoreTTA')
            if scope == 'mmpretrain'
            else dict(type='DetTTAModel', tta_cfg=nms)
        )
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


class DumpSegResults(DumpResults):
    """Dumps label maps without the logits, which have a value per class for every pixel."""

    def process(self, data_batch: Any, predictions: Sequence[dict]) -> None:
        dropped = ('seg_logits', 'gt_sem_seg')
        super().process(
            data_batch,
            [{k: v for k, v in sample.items() if k not in dropped} for sample in predictions],
        )


def dump_metric(scope: str | None, path: str) -> BaseMetric:
    """Make the metric that writes the predictions to ``path``."""
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults  # masks run-length encoded

        return DumpDetResults(path)
    return (DumpSegResults if scope == 'mmseg' else DumpResults)(path)


def main(argv: Sequence[str] | None = None) -> Runner:
    args = parse_args(argv)
    cfg = load_config(args)
    if not args.no_preflight:  # before --tta wraps the model
        check_checkpoint(check_model(cfg, pretrained=False), args.checkpoint, 'checkpoint')
    merge_args(cfg, args)
    datasets = {}
    if not args.no_preflight:
        datasets['test_dataloader'] = check_dataloader(cfg, 'test_dataloader')
        check_evaluator(cfg, 'test_evaluator')

    runner = build_runner(cfg, datasets)
    if args.out:
        runner.test_evaluator.metrics.append(dump_metric(cfg.get('default_scope'), args.out))
    with file_errors(runner):
        runner.test()
    leave_process_group()
    return runner

"""Train a classifier, detector or segmentor: the config's ``default_scope`` says which."""

import argparse
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.runner import Runner

from .config import class_name
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
from .preflight import (
    check_checkpoint,
    check_evaluator,
    check_file,
    check_model,
    check_start,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = base_parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint or, without a value, from the latest one in the work '
        'directory (from the start if there is none)',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision; on a CPU in bfloat16, without loss scaling',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the total batch size divided by '
        'auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during training'
    )
    return parser.parse_args(argv)


def merge_args(cfg: Config, args: argparse.Namespace) -> None:
    """Write the training arguments into the config."""
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        optim_wrapper = cfg.get('optim_wrapper')
        if not optim_wrapper:
            raise UserError('--amp: the config has no optim_wrapper')
        wrapper = class_name(optim_wrapper.get('type', 'OptimWrapper'))
        if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise UserError(f"--amp: optim_wrapper.type is '{wrapper}', expected 'OptimWrapper'")
        optim_wrapper.type = 'AmpOptimWrapper'
        optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise UserError('--auto-scale-lr: the config has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    set_dataloader_defaults(cfg)


def preflight(cfg: Config) -> dict[str, list]:
    """Check model, checkpoints and datasets; return the datasets by dataloader for the runner."""
    if cfg.get('resume') and cfg.get('load_from'):
        check_file(cfg.load_from, '--resume')
    model = check_model(cfg)
    if cfg.get('load_from'):
        if cfg.get('resume'):
            check_checkpoint(model, cfg.load_from, '--resume')
        else:
            check_start(model, cfg.load_from)
    datasets = {}
    for split in ('train', 'val'):
        datasets[f'{split}_dataloader'] = check_dataloader(cfg, f'{split}_dataloader')
        check_evaluator(cfg, f'{split}_evaluator')
    return datasets


def main(argv: Sequence[str] | None = None) -> Runner:
    args = parse_args(argv)
    cfg = load_config(args)
    merge_args(cfg, args)
    runner = build_runner(cfg, {} if args.no_preflight else preflight(cfg))
    with file_errors(runner):
        runner.train()
    leave_process_group()
    return runner

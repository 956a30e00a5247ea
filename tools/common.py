"""What train.py and test.py share: arguments, config loading, one-line errors, running on CPUs.

A mistake of the user ends in one line on stderr and exit code 2, before anything is written.
Set ``DAT_PP_TRACEBACK=1`` to see where it was raised instead.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import os.path as osp
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, RUNNERS, init_default_scope
from mmengine.runner import Runner

import dat_pp  # noqa: F401  makes `_base_ = 'dat_pp::...'` and the backbone known

# Scope of a config -> what to install for it.
LIBRARIES = {
    'mmpretrain': 'onedl-mmpretrain',
    'mmdet': 'onedl-mmdetection',
    'mmseg': 'onedl-mmsegmentation',
}
RANK_VARIABLES = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


class UserError(Exception):
    """Something the user gave cannot be used; the message is one line that says what and where."""


def run_main(main: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None = None) -> int:
    """Run ``main(argv)`` and return the exit code: its own if it returns a number, 0, or 2 after
    one line about a UserError.
    """
    try:
        result = main(argv)
    except UserError as error:
        if os.environ.get('DAT_PP_TRACEBACK'):
            traceback.print_exc()
        elif is_first_process():
            print(f'error: {error}', file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


def message_of(error: BaseException) -> str:
    """One line for an exception; of one from a data loading process its last, telling line."""
    # str() of a KeyError is the repr of its argument.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if 'Traceback (most recent call last)' in text:
        text = text.strip().splitlines()[-1].partition(': ')[2] or text.strip().splitlines()[-1]
    return ' '.join(text.split()) or type(error).__name__


@contextlib.contextmanager
def user_errors(what: str, advice: str = '') -> Iterator[None]:
    """Turn whatever the body raises into a UserError that begins with ``what``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{what}: {message_of(error)}{advice}') from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No output, log lines or warnings: for trial builds, which the real build repeats."""
    logger = MMLogger.get_current_instance()
    # logging.disable() would not do: mmengine's loggers remember what was enabled.
    handlers, logger.handlers = logger.handlers, []
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.handlers = handlers


def is_first_process() -> bool:
    """Whether this is the process that checks and reports, whatever the launcher."""
    return all(os.environ.get(name, '0') == '0' for name in RANK_VARIABLES)


def config_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of every tool that reads a config."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog='DAT_PP_TRACEBACK=1 shows a traceback where an error is one line otherwise.',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config, for example train_cfg.max_epochs=3 '
        'or key="[(a,b),(c,d)]"; no spaces inside a value',
    )
    return parser


def base_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of train.py and test.py."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # Given by launchers that do not set the environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def load_config(args: argparse.Namespace) -> Config:
    """Read the config of a run: ``read_config`` and the launcher and work directory."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args)
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif not cfg.get('work_dir'):
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    return cfg


def read_config(args: argparse.Namespace) -> Config:
    """Read the config, merge ``--cfg-options``, and make its library's modules known."""
    if not osp.isfile(args.config):
        raise UserError(f'config: no such file: {args.config}')
    with user_errors(f'config {args.config}'):
        try:
            cfg = Config.fromfile(args.config)
        except ImportError as error:  # of a library whose config or modules this one takes
            _need_libraries(args.config, [name for name in LIBRARIES if name in str(error)])
            raise
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
    scope = cfg.get('default_scope') or 'mmengine'
    if scope in LIBRARIES:
        _need_libraries(args.config, [scope])
    with silence():
        init_default_scope(scope)
    return cfg


def _need_libraries(config: str, names: Sequence[str]) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"config {config}: needs '{name}', which is not installed: "
                f'pip install --no-build-isolation {LIBRARIES[name]}'
            )


def build_runner(cfg: Config) -> Runner:
    """The config's runner. From here on files are written."""
    use_cpu_if_needed(cfg)
    with user_errors(f'config {cfg.filename}'):
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def set_dataloader_defaults(cfg: Config) -> None:
    """mmpretrain's own tools set these, and its configs rely on them."""
    if cfg.get('default_scope') != 'mmpretrain':
        return
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader:
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """bfloat16 autocast on a CPU, where mmengine's AmpOptimWrapper refuses to start.

    bfloat16 has the range of float32, so there is no loss to scale.
    """

    @contextlib.contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield


def use_cpu_if_needed(cfg: Config) -> None:
    """Where there is no accelerator: mixed precision and distributed training on the CPU.

    Two-stage detectors train in float32 there.
    """
    if get_device() != 'cpu':
        return
    optim_wrapper = cfg.get('optim_wrapper') or {}
    if optim_wrapper.get('type') == 'AmpOptimWrapper':
        # mmcv's RoIAlign knows no bfloat16.
        in_float32 = 'roi_head' in (cfg.get('model') or {})
        optim_wrapper.type = 'OptimWrapper' if in_float32 else 'CPUAmpOptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            optim_wrapper.pop(key, None)
    if cfg.launcher != 'none':
        _init_gloo(cfg)


def _init_gloo(cfg: Config) -> None:
    """Start the process group here: mmengine would choose a CUDA device first, even for gloo."""
    env = os.environ
    if cfg.launcher in ('slurm', 'mpi'):
        rank, size, local_rank = {
            'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
            'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
        }[cfg.launcher]
        with user_errors(f'--launcher {cfg.launcher}, without a GPU, needs the variable'):
            env.update(RANK=env[rank], WORLD_SIZE=env[size], LOCAL_RANK=env[local_rank])
        env.setdefault('MASTER_ADDR', '127.0.0.1')
        env.setdefault('MASTER_PORT', '29500')
    if not torch.distributed.is_initialized():
        with user_errors(f'--launcher {cfg.launcher}: cannot start the process group'):
            torch.distributed.init_process_group('gloo')
    # device_ids are for GPUs; mmengine would pass the local rank. The other two values are what
    # mmengine passes when there is no wrapper in the config.
    wrapper = cfg.get('model_wrapper_cfg') or ConfigDict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    wrapper.device_ids = None
    cfg.model_wrapper_cfg = wrapper

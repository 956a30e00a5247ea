"""Start a run: the arguments of train.py and test.py, the runner, and runs on CPUs."""

import argparse
import atexit
import contextlib
import importlib
import os
import os.path as osp
from collections.abc import Mapping

import torch
import torch.distributed
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .config import LIBRARIES, class_name, config_parser, read_config
from .datasets import leaf_datasets
from .errors import user_errors
from .noise import hide_log_lines, silence
from .processes import VARIABLES


def base_parser(description: str) -> argparse.ArgumentParser:
    """Make the argument parser that train.py and test.py share."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--no-preflight',
        action='store_true',
        help='start without first checking model, checkpoints and datasets',
    )
    parser.add_argument('--launcher', choices=['none', *VARIABLES], default='none')
    # Given by launchers that do not set the environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def load_config(args: argparse.Namespace) -> Config:
    """Read the config of a run and set its launcher, work directory and dataloader defaults."""
    # mmengine wraps the model for the GPU of LOCAL_RANK, but under MPI does not set it.
    *_, local_rank = VARIABLES.get(args.launcher, VARIABLES['pytorch'])
    os.environ.setdefault('LOCAL_RANK', os.environ.get(local_rank, str(args.local_rank)))
    cfg = read_config(args)
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif not cfg.get('work_dir'):
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    return cfg


def set_dataloader_defaults(cfg: Config) -> None:
    """Set what mmpretrain's own tools set and its configs rely on."""
    if cfg.get('default_scope') != 'mmpretrain':
        return
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader:
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))


def build_runner(cfg: Config, datasets: Mapping[str, list] | None = None) -> Runner:
    """Build the config's runner, which creates the work directory.

    Args:
        cfg: The config; settings that need a GPU are changed where there is none.
        datasets: Datasets by the name of their dataloader, as ``check_dataloader`` returns them,
            for the runner to use instead of building them again.

    Raises:
        UserError: The runner cannot be built.
    """
    use_cpu_if_needed(cfg)
    # Some print lines that mean nothing when they are imported.
    for name in LIBRARIES:
        if name == cfg.get('default_scope') or f'{name}.' in cfg.text:
            with silence(), contextlib.suppress(ImportError):
                importlib.import_module(f'{name}.datasets')
    with user_errors(f'config {cfg.filename}'):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if cfg.get('compile') and hasattr(runner, '_compile'):
        runner._compile = cfg.compile  # FlexibleRunner.from_cfg forgets it
    hide_log_lines(runner.logger)
    for name, built in (datasets or {}).items():
        if built:
            _hand_over(getattr(runner, f'_{name}')['dataset'], built)
    return runner


def _hand_over(cfg: dict, datasets: list) -> None:
    """Have the runner use ``datasets`` where ``cfg``, its own copy, describes datasets.

    A function in the place of a dataset's type is not copied, as a dataset would be.
    """
    for (leaf, _), dataset in zip(leaf_datasets(cfg), datasets, strict=True):
        if dataset is not None:
            leaf.clear()
            leaf['type'] = _returning(dataset)


def _returning(dataset: object) -> object:
    def built() -> object:
        return dataset

    return built


def use_cpu_if_needed(cfg: Config) -> None:
    """Where there is no accelerator, set up mixed precision and distributed runs for the CPU."""
    if get_device() != 'cpu':
        return
    optim_wrapper = cfg.get('optim_wrapper') or {}
    if class_name(optim_wrapper.get('type')) == 'AmpOptimWrapper':
        in_float32 = _needs_float32(cfg.get('model') or {})
        optim_wrapper['type'] = 'OptimWrapper' if in_float32 else 'CPUAmpOptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            optim_wrapper.pop(key, None)
    if cfg.launcher != 'none':
        _init_gloo(cfg.launcher)
        _wrap_on_cpu(cfg)


def _needs_float32(model: dict) -> bool:
    """Whether a two-stage detector gives NMS or RoIAlign bfloat16, which they refuse on CPUs."""
    roi_head = model.get('roi_head')
    if not roi_head:
        return False
    parts = [roi_head.get(f'{name}_roi_extractor') for name in ('bbox', 'mask')]
    parts.append(model.get('rpn_head'))
    return any(
        part and not class_name(part.get('type')).lower().startswith('float32') for part in parts
    )


def _init_gloo(launcher: str) -> None:
    """Start the process group; mmengine would choose a CUDA device first, even for gloo."""
    env = os.environ
    if launcher != 'pytorch':
        rank, size, local_rank = VARIABLES[launcher]
        with user_errors(f'--launcher {launcher}, without a GPU, needs the variable'):
            env.update(RANK=env[rank], WORLD_SIZE=env[size], LOCAL_RANK=env[local_rank])
        env.setdefault('MASTER_ADDR', '127.0.0.1')
        env.setdefault('MASTER_PORT', '29500')
    if not torch.distributed.is_initialized():
        with user_errors(f'--launcher {launcher}: cannot start the process group'):
            torch.distributed.init_process_group('gloo')
        # Its threads must not outlive the interpreter.
        atexit.register(_destroy_process_group)


def leave_process_group() -> None:
    """Wait for the other processes at the end of a run, so that none exits while another sends."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _destroy_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _wrap_on_cpu(cfg: Config) -> None:
    """Wrap the model without ``device_ids``, for which mmengine passes the local rank.

    The other settings are mmengine's defaults.
    """
    flexible = class_name(cfg.get('runner_type')) == 'FlexibleRunner'
    if flexible:
        cfg.strategy = cfg.get('strategy') or ConfigDict(type='DDPStrategy')
    place, key = (cfg.strategy, 'model_wrapper') if flexible else (cfg, 'model_wrapper_cfg')
    wrapper = place.get(key) or ConfigDict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    wrapper.device_ids = None
    place[key] = wrapper

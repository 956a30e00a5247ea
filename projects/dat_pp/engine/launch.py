"""Starting a run: the arguments of train.py and test.py, the runner, and running on CPUs."""

import argparse
import contextlib
import os
import os.path as osp
from collections.abc import Iterator

import torch
import torch.distributed
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, RUNNERS
from mmengine.runner import Runner

from .config import config_parser, read_config
from .errors import user_errors


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

"""Reading a config: the arguments that every tool shares, and the library that it needs."""

import argparse
import importlib.util
import os.path as osp
from collections.abc import Sequence

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

from .errors import UserError, silence, user_errors

# Scope of a config -> what to install for it.
LIBRARIES = {
    'mmpretrain': 'onedl-mmpretrain',
    'mmdet': 'onedl-mmdetection',
    'mmseg': 'onedl-mmsegmentation',
}


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

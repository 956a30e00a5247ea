"""Read configs: the command line arguments that all tools share, and the library that is needed."""

import argparse
import importlib.util
import os.path as osp
from collections.abc import Iterable
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

from .errors import UserError, user_errors
from .noise import hide_printed, silence

LIBRARIES = {
    'mmpretrain': 'onedl-mmpretrain',
    'mmdet': 'onedl-mmdetection',
    'mmseg': 'onedl-mmsegmentation',
}
"""``default_scope`` of a config -> the distribution that provides it."""


def config_parser(description: str) -> argparse.ArgumentParser:
    """Make the argument parser of a tool that reads a config."""
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
    """Read a config, merge ``--cfg-options``, and make its ``default_scope`` the current one.

    Args:
        args: Arguments of :func:`config_parser`: ``config`` and ``cfg_options``.

    Raises:
        UserError: The config cannot be read, or needs a library that is not installed.
    """
    if not osp.isfile(args.config):
        raise UserError(f'config: no such file: {args.config}')
    with user_errors(f'config {args.config}'):
        try:
            with hide_printed():
                cfg = Config.fromfile(args.config)
        except ImportError as error:  # of a library that a base or an import of the config needs
            _require(args.config, (name for name in LIBRARIES if name in str(error)))
            raise
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
    scope = cfg.get('default_scope') or 'mmengine'
    if scope in LIBRARIES:
        _require(args.config, [scope])
    with silence():
        init_default_scope(scope)
    return cfg


def class_name(value: Any) -> str:
    """Return the name, without scope, of the class that a ``type`` of a config stands for.

    In lazy configs it is the class itself. Empty if there is none.
    """
    return value.rpartition('.')[2] if isinstance(value, str) else getattr(value, '__name__', '')


def _require(config: str, libraries: Iterable[str]) -> None:
    for name in libraries:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"config {config}: needs '{name}', which is not installed: "
                f'pip install --no-build-isolation {LIBRARIES[name]}'
            )

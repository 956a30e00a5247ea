"""Name the file in errors that reading data and writing checkpoints raise during a run.

The libraries' errors often do not: a decoder sees bytes, and a full disk is reported by a write
that knows no path. Here the path is added where the file is read or written, so no file is ever
searched for after the fact.
"""

import contextlib
import errno
import functools
import os.path as osp
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from .errors import RunError, message_of

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# Mistakes in a config or in code; these keep their traceback.
NOT_OF_A_FILE = (AttributeError, ImportError, KeyError, NameError, TypeError)


@contextlib.contextmanager
def file_errors(runner: Runner) -> Iterator[None]:
    """Turn failures to read a sample or to write a file in the body into a RunError with the path.

    Args:
        runner: The runner that the body runs; its other errors pass through unchanged.
    """
    runner.register_hook(_NameFilesHook())
    runner.save_checkpoint = functools.partial(_save_checkpoint, runner.save_checkpoint)
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        path = error.filename or f'a file under {runner.work_dir}'
        raise RunError(f'cannot write {path}: {error.strerror}') from error


def _save_checkpoint(save: Callable, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return save(out_dir, filename, *args, **kwargs)
    except OSError as error:
        path = osp.join(out_dir, filename)
        raise RunError(f'cannot write {path}: {error.strerror or message_of(error)}') from error


class _NameFilesHook(Hook):
    """Prepares the datasets of a run before their first sample is loaded."""

    def before_train(self, runner: Runner) -> None:
        name_files(runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        name_files(runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        name_files(runner.test_dataloader.dataset)


def name_files(dataset: Any) -> None:
    """Have the loading transforms of a dataset, inside wrappers too, name the file that fails.

    Loading transforms are those whose class is called ``Load...``; what they do does not change.
    """
    for child in (getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())):
        if child is not None:
            name_files(child)
    _name_files_in(getattr(dataset, 'pipeline', None))


def _name_files_in(transforms: Any) -> None:
    """Wrap loading transforms in a list, or in lists that a composing transform holds."""
    if not isinstance(transforms, list):
        for name in ('transforms', 'subroutines'):  # of Compose, RandomApply, TestTimeAug, ...
            if hasattr(transforms, name):
                _name_files_in(getattr(transforms, name))
        return
    for index, transform in enumerate(transforms):
        if type(transform).__name__.startswith('Load'):
            transforms[index] = _Load(transform)
        else:
            _name_files_in(transform)


class _Load:
    """A loading transform whose errors name the file.

    A worker process hands an exception over as its class and one text, so what is raised here is
    complete in its message.
    """

    def __init__(self, transform: Callable[[dict], dict | None]) -> None:
        self.transform = transform

    def __call__(self, results: dict) -> dict | None:
        try:
            return self.transform(results)
        except NOT_OF_A_FILE:
            raise
        except Exception as error:
            reason = getattr(error, 'strerror', None) or message_of(error)
            raise RunError(f'data: cannot read {self.file(results)}: {reason}') from error

    def file(self, results: Mapping[str, Any]) -> str:
        """What the transform reads of a sample."""
        image, label_map = str(results.get('img_path')), results.get('seg_map_path')
        if 'Annotations' not in type(self.transform).__name__:
            return image
        if label_map and getattr(self.transform, 'with_seg', True):
            return label_map
        return f'the annotations of {image}'

    def __repr__(self) -> str:
        return repr(self.transform)

    def __getattr__(self, name: str) -> Any:
        if name == 'transform':  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.transform, name)

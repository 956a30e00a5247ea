"""One line for a mistake of the user: UserError, what turns exceptions into it, and who prints it.

A mistake of the user ends in one line on stderr and exit code 2, before anything is written.
Set ``DAT_PP_TRACEBACK=1`` to see where it was raised instead.
"""

import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmengine.logging import MMLogger

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

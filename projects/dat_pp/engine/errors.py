"""User errors: reported as one line on stderr with exit code 2, without a traceback.

``DAT_PP_TRACEBACK=1`` shows where the error was raised instead.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .noise import hide_noise
from .processes import is_first_process


class UserError(Exception):
    """An input cannot be used. The message is one line: what is wrong, where, and what to do."""


class RunError(UserError):
    """A file could not be read or written during a run, in this process only.

    A mistake in the arguments meets all processes of a machine alike, and the first one reports
    it. A ``RunError`` is reported by every process that it meets.
    """


def run_main(main: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None = None) -> int:
    """Run a tool and report its user error.

    Args:
        main: The tool's main function.
        argv: Its command line arguments. Default: those of this process.

    Returns:
        2 after a user error, else the number that ``main`` returns, or 0: the exit code.
    """
    try:
        with hide_noise():
            result = main(argv)
    except UserError as error:
        if os.environ.get('DAT_PP_TRACEBACK'):
            traceback.print_exc()
        elif is_first_process() or isinstance(error, RunError):
            print(f'error: {message_of(error)}', file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


def message_of(error: BaseException) -> str:
    """Return the message of an exception as one line.

    An exception of a data loading worker arrives with the worker's traceback as its message; the
    last line is the original message.
    """
    # str() of a KeyError is the repr of its argument.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if 'Traceback (most recent call last)' in text:
        last = text.strip().splitlines()[-1]
        text = last.partition(': ')[2] or last
    return ' '.join(text.split()) or type(error).__name__


@contextlib.contextmanager
def user_errors(what: str, advice: str = '') -> Iterator[None]:
    """Turn any exception of the body into a UserError: ``what``, its message, and ``advice``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{what}: {message_of(error)}{advice}') from error

"""Hide messages of the libraries that users of a tool cannot act on, each of them by name.

All other warnings and log lines are shown.
"""

import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator

# Beginnings of messages, as regular expressions.
WARNINGS = (
    # mmdet imports every metric, and one of them asks for a package that only it uses.
    'faster_coco_eval is not installed',
    # mmseg, for every cross-entropy loss with the default settings, which the recipes mean.
    r'Default ``avg_non_ignore`` is False',
    # mmseg's visualization hook, in every run that does not ask for drawings.
    'The draw is False, it means that the hook for visualization will not take effect',
    # mmengine, for every label map that is flipped back in test-time augmentation.
    'The shape of value will convert from',
    # mmengine, for boxes and polygons that reach over the border of the image.
    r'Warning: The (bbox|polygon) is out of bounds',
    # mmengine, in every run of several processes.
    r'Setting (OMP|MKL)_NUM_THREADS environment variable for each process',
    # PyTorch, for weights in channels-last memory under DistributedDataParallel.
    'Grad strides do not match bucket view strides',
    # Older releases of mmengine and of the libraries' dependencies.
    'pkg_resources is deprecated as an API',
    r'Importing from timm\.models\.\w+ is deprecated',
    'A new version of Albumentations is available',
)
LOG_LINES = (
    # mmengine, about its own calls.
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias of "LocalBackend"',
    # mmengine, for metrics whose values have names of their own or none.
    r'The prefix is not set in metric class (IoUMetric|Dump\w*Results)',
    # mmengine, for registries that a library does not have; the root registry is meant.
    'Failed to search registry with scope',
)
# The libraries print this at import unless a commercial package is installed.
PRINTED = ('Could not import OneDL',)


class _LogFilter(logging.Filter):
    """Drops the log lines that begin as one of ``LOG_LINES``."""

    pattern = re.compile('|'.join(LOG_LINES))

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.pattern.match(record.getMessage())


_LOG_FILTER = _LogFilter()


@contextlib.contextmanager
def hide_noise() -> Iterator[None]:
    """Hide ``WARNINGS``, and ``LOG_LINES`` of mmengine's current logger."""
    hide_log_lines(_current_logger())
    with warnings.catch_warnings():
        for message in WARNINGS:
            warnings.filterwarnings('ignore', message)
        yield


def hide_log_lines(logger: logging.Logger) -> None:
    """Hide ``LOG_LINES`` of a logger from now on; every runner has a logger of its own."""
    logger.addFilter(_LOG_FILTER)  # adding it twice changes nothing


@contextlib.contextmanager
def hide_printed() -> Iterator[None]:
    """Hold back what the body prints, and print it at the end without ``PRINTED``: for imports."""
    held_back = io.StringIO()
    try:
        with contextlib.redirect_stdout(held_back):
            yield
    finally:
        for line in held_back.getvalue().splitlines(keepends=True):
            if not line.startswith(PRINTED):
                sys.stdout.write(line)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide all output, log lines and warnings: for trial builds, which the real build repeats."""
    logger = _current_logger()
    # logging.disable() would not do: mmengine's loggers remember what was enabled.
    handlers, logger.handlers = logger.handlers, []
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.handlers = handlers


def _current_logger() -> logging.Logger:
    """mmengine's current logger; without mmengine, that of this package."""
    try:
        from mmengine.logging import MMLogger
    except ModuleNotFoundError:
        return logging.getLogger('dat_pp')
    return MMLogger.get_current_instance()

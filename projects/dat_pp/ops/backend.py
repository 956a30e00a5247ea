"""Choice of the implementation of an operator."""

import os
from collections.abc import Callable

ENVIRONMENT_VARIABLE = 'DAT_PP_BACKEND'


def select_backend(backends: dict[str, Callable], default: str, forced: str | None) -> Callable:
    """The implementation to run: the argument decides, then ``DAT_PP_BACKEND``, then the default.

    Raises:
        ValueError: The forced name is none of ``backends``.
    """
    name = forced or os.environ.get(ENVIRONMENT_VARIABLE) or default
    if name not in backends:
        source = 'backend' if forced else ENVIRONMENT_VARIABLE
        raise ValueError(f'{source} is {name!r}; choose one of {", ".join(sorted(backends))}')
    return backends[name]

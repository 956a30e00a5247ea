"""Choice of the backend that runs an operator."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .context import is_exporting, is_transformed

ENVIRONMENT_VARIABLE = 'DAT_PP_BACKEND'


def _no_reason(*_: object) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Attributes:
        name: What users type; also the name of its file and of its custom operator.
        run: Called with the operator's inputs and the dropout probability; returns the output.
        unsupported_reason: Called with the arguments of ``run``; says in a few words why they
            cannot be computed, or returns None. It neither compiles nor imports anything.
        load: Called before ``run``; compiles or imports what it needs, once. Returns why that
            failed, or None.
        device: Type of the devices on which it is chosen by default; None for all.
    """

    name: str
    run: Callable[..., Tensor]
    unsupported_reason: Callable[..., str | None] = _no_reason
    load: Callable[[], str | None] = _no_reason
    device: str | None = None


def by_name(*backends: Backend) -> dict[str, Backend]:
    """The backends of an operator, in order of preference; the last one runs everything."""
    return {backend.name: backend for backend in backends}


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force a backend of all operators, as ``DAT_PP_BACKEND`` does, which this sets meanwhile.

    Args:
        name: The backend; None for the operators' own choice, whatever the user has set.
    """
    before = os.environ.pop(ENVIRONMENT_VARIABLE, None)
    if name:
        os.environ[ENVIRONMENT_VARIABLE] = name
    try:
        yield
    finally:
        os.environ.pop(ENVIRONMENT_VARIABLE, None)
        if before is not None:
            os.environ[ENVIRONMENT_VARIABLE] = before


def select(backends: Mapping[str, Backend], inputs: tuple[Any, ...], forced: str | None) -> Backend:
    """Choose the backend for these inputs, the first of which are the queries.

    The argument ``forced`` decides, then the environment variable ``DAT_PP_BACKEND``, then the
    order of ``backends``. In exporters and under torch.func the default is the last one, which
    consists of PyTorch's own operators.

    Raises:
        ValueError: The forced name is unknown or that backend cannot run; says why.
    """
    name = forced or os.environ.get(ENVIRONMENT_VARIABLE)
    if not name:
        return _default(backends, inputs)
    source = 'backend' if forced else ENVIRONMENT_VARIABLE
    if name not in backends:
        raise ValueError(f'{source} is {name!r}; choose one of {", ".join(sorted(backends))}')
    backend = backends[name]
    reason = backend.unsupported_reason(*inputs) or backend.load()
    if reason:
        raise ValueError(f"{source} is '{name}', which cannot run: {reason}")
    return backend


def _default(backends: Mapping[str, Backend], inputs: tuple[Any, ...]) -> Backend:
    *preferred, definition = backends.values()
    if is_exporting() or is_transformed():
        return definition
    device = inputs[0].device.type
    for backend in preferred:
        if backend.device is not None and backend.device != device:
            continue
        if not (backend.unsupported_reason(*inputs) or backend.load()):
            return backend
    return definition

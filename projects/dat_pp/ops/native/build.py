"""Compiles the C++ kernels of an operator on first use, loads and calls them.

The sources have no dependencies: a compiler makes a shared library of them in seconds, which is
kept in the user's cache folder under a name that changes with sources, flags, compiler and
processor.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import custom_op
from ..context import constant_when_compiled

HEADER = Path(__file__).with_name('kernels.h')
HEAD_SIZES = (32, 64)
"""Channels that heads are padded to."""
MACHINES = ('-march=native',), ('-mcpu=native',), ()
"""Flags for this processor, of which the first that the compiler takes counts; ARM has either."""
FLAGS = (
    *shlex.split('-O3 -std=c++17 -pthread -fPIC -shared -ffp-contract=fast -Wno-psabi'),
    f'-DFOR_EACH_HEAD_SIZE(X)={" ".join(f"X({size})" for size in HEAD_SIZES)}',
)


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    """Fields of a ``ctypes.Structure``, all of one type."""
    return [(name, kind) for name in names.split()]


class Map(ctypes.Structure):
    """A float32 tensor (B, h, H, W, d) or (B, h, N, d), the last axis contiguous."""

    _fields_ = (
        *fields(ctypes.c_void_p, 'data'),
        *fields(ctypes.c_int64, 'image head row column'),
    )


class Arguments(ctypes.Structure):
    """Base of the arguments of an operator's kernels; keeps their tensors alive.

    Subclasses mirror the struct in C++. A tensor is given for a :class:`Map` or a pointer, to
    float32 and contiguous then; those left out are null, numbers 0.
    """

    def __init__(self, **values: Any) -> None:
        kinds = {field[0]: field[1] for field in self._fields_}
        super().__init__(**{name: self._convert(kinds[name], x) for name, x in values.items()})
        self.values = values

    @staticmethod
    def _convert(kind: type, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if kind is Map:
            return Map(value.data_ptr(), *value.stride()[:-1])
        return value.data_ptr()


class Kernels:
    """The compiled kernels of an operator.

    Args:
        source: The C++ file. It defines ``forward_kernel`` and ``backward_kernel``.
        arguments: Mirrors its struct of arguments.
        constants: Compile-time constants of the source, by name.
    """

    def __init__(self, source: Path, arguments: type[Arguments], **constants: int) -> None:
        self.source = source
        self.arguments = arguments
        self.flags = (*FLAGS, *(f'-D{name}={value}' for name, value in constants.items()))
        self._library: ctypes.CDLL | None = None
        self._failure: str | None = None

    def load(self) -> str | None:
        """Compile, if that has not been done before, and load; return why that failed.

        A failure is remembered, and warned of once.
        """
        if self._library is None and self._failure is None:
            try:
                self._library = self._open(self._compiled())
            except _BuildError as error:
                self._failure = str(error)
                _warn(self._failure)
        return self._failure

    @property
    def lanes(self) -> int:
        """Queries per vector, on this processor."""
        return ctypes.c_int64.in_dll(self._loaded(), 'lanes').value

    def __call__(self, name: str, arguments: Arguments) -> None:
        """Call the kernel ``name``."""
        library = self._loaded()
        arguments.threads = torch.get_num_threads()
        getattr(library, name)(ctypes.byref(arguments))

    def _loaded(self) -> ctypes.CDLL:
        failure = self.load()
        if self._library is None:
            raise RuntimeError(f'the CPU kernels cannot run: {failure}')
        return self._library

    def _open(self, path: Path) -> ctypes.CDLL:
        try:
            library = ctypes.CDLL(str(path))
            size = ctypes.c_int64.in_dll(library, 'arguments_size').value
        except (OSError, ValueError) as error:
            raise _BuildError(f'its kernels cannot be loaded: {error}') from error
        expected = ctypes.sizeof(self.arguments)
        if size != expected:
            raise RuntimeError(
                f'Arguments in {self.source} has {size} bytes, its mirror in Python {expected}'
            )
        return library

    def _compiled(self) -> Path:
        compiler = _compiler()
        if isinstance(compiler, str):
            raise _BuildError(compiler)
        flags, macros = _machine(compiler)
        command = [*compiler, *flags, *self.flags]
        if '__clang__' not in macros:
            # Threads of PyTorch's pool. Clang's OpenMP would be a second runtime in the process, if
            # it is installed at all; kernels.h starts threads itself there.
            command.append('-fopenmp')
        path = self._cache_path(command, macros)
        if not path.exists():
            self._compile(command, path)
        return path

    def _cache_path(self, command: Sequence[str], macros: str) -> Path:
        # Macros: what -march=native means differs between machines, which may share a home folder.
        sources = [path.read_text() for path in (HEADER, self.source)]
        parts = [*sources, *command, macros, platform.platform()]
        name = hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:32]
        try:
            folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'dat_pp'
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
            raise _BuildError(f'its cache folder cannot be made: {error}') from error
        return folder / f'{name}.so'

    def _compile(self, command: Sequence[str], path: Path) -> None:
        # Other processes may compile at the same time: the last one replaces an equal file.
        try:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                out = Path(folder) / path.name
                _run([*command, str(self.source), '-o', str(out)])
                out.replace(path)
        except OSError as error:
            raise _BuildError(f'its cache folder cannot be written: {error}') from error


class _BuildError(Exception):
    """Why there are no compiled kernels."""


def _run(command: Sequence[str]) -> str:
    """Output of a command of the compiler."""
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines() or [str(error)]
        cause = next((line for line in lines if 'error' in line), lines[-1])
        raise _BuildError(f'its kernels do not compile: {cause.strip()}') from error
    except OSError as error:
        raise _BuildError(f'the C++ compiler does not start: {error}') from error


def _machine(compiler: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Those of ``MACHINES`` that the compiler takes, and the macros it defines with them."""
    for flags in MACHINES:
        try:
            return flags, _run([*compiler, *flags, '-dM', '-E', '-x', 'c++', os.devnull])
        except _BuildError as error:
            failure = error
    raise failure


@functools.cache
def _compiler() -> list[str] | str:
    """Command of the C++ compiler, ``$CXX`` or ``c++``; why there is none, after a warning."""
    if sys.platform == 'win32':
        reason = 'its kernels have no Windows version'
        _warn(reason)
        return reason
    command = shlex.split(os.environ.get('CXX', '')) or ['c++']
    if shutil.which(command[0]):
        return command
    reason = f'there is no C++ compiler ({command[0]})'
    _warn(reason)
    return reason


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f'attention on CPUs is slow: {reason}', stacklevel=2)


@constant_when_compiled
def _missing_compiler() -> str | None:
    compiler = _compiler()
    return compiler if isinstance(compiler, str) else None


def unsupported_reason(q: Tensor, dropout_p: float) -> str | None:
    """Why compiled kernels cannot run on these queries; None if they can. Compiles nothing."""
    if q.device.type != 'cpu':
        return f'it is for CPUs, not {q.device.type}'
    return custom_op.unsupported_reason(q, dropout_p, HEAD_SIZES[-1]) or _missing_compiler()


def padded_size(dim: int) -> int:
    """Channels that the kernels take for a head of ``dim``."""
    return next(size for size in HEAD_SIZES if size >= dim)

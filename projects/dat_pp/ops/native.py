"""Compiles the CPU kernels on first use, and calls them.

The sources have no dependencies: a C++ compiler makes a shared library of them in seconds, which is
kept in the user's cache folder under a name that changes with sources, compiler and processor.
"""

import ctypes
import functools
import hashlib
import math
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

FOLDER = Path(__file__).parent
SOURCES = (
    FOLDER / 'native.h',
    FOLDER / 'deformable_attention' / 'native.cpp',
    FOLDER / 'neighborhood_attention' / 'native.cpp',
)
FLAGS = shlex.split(
    '-O3 -march=native -std=c++17 -fopenmp -fPIC -shared -ffp-contract=fast -Wno-psabi'
)
HEAD_SIZES = (32, 64)
"""Channels that heads are padded to."""


@torch.compiler.assume_constant_result
def obstacle() -> str | None:
    """Why there are no compiled kernels here; None if there are."""
    found = library()
    return found if isinstance(found, str) else None


@functools.cache
def library() -> ctypes.CDLL | str:
    """The compiled kernels, or why there are none, of which it also warns."""
    try:
        return _load()
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines() or [str(error)]
        cause = next((line for line in lines if 'error' in line), lines[-1])
        cause = f'its kernels do not compile: {cause.strip()}'
    except FileNotFoundError as error:
        cause = f'there is no C++ compiler ({error.filename})'
    except OSError as error:
        cause = f'its kernels cannot be made: {error}'
    warnings.warn(f'attention on CPUs is slow: {cause}', stacklevel=2)
    return cause


def _load() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get('CXX', '')) or ['c++']
    fingerprint = _fingerprint(compiler)
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    path = Path(root) / 'dat_pp' / f'{fingerprint}.so'
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _compile(compiler, path)
    return ctypes.CDLL(str(path))


def _fingerprint(compiler: Sequence[str]) -> str:
    # What -march=native stands for differs from machine to machine; homes are shared.
    target = _run([*compiler, '-march=native', '-dM', '-E', '-x', 'c++', os.devnull])
    parts = [*(source.read_text() for source in SOURCES), *FLAGS, target, platform.platform()]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:32]


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def _compile(compiler: Sequence[str], path: Path) -> None:
    # Other processes may do the same at this time: whoever is last replaces an equal file.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = Path(folder) / path.name
        sources = [str(source) for source in SOURCES if source.suffix == '.cpp']
        _run([*compiler, *FLAGS, *sources, '-o', str(out)])
        out.replace(path)


def call(
    name: str, sizes: Sequence[int], maps: Sequence[Tensor], arrays: Sequence[Tensor | None]
) -> None:
    """Call a kernel.

    Args:
        name: Its name in the library.
        sizes: Its sizes, after the number of threads.
        maps: Float32 tensors (B, h, H, W, d) or (B, h, N, d), the last axis contiguous.
        arrays: Contiguous float32 tensors.
    """
    numbers = [
        number for x in maps for number in (x.data_ptr(), *x.stride()[:-1], *[0] * (5 - x.dim()))
    ]
    sizes = (torch.get_num_threads(), *sizes)
    getattr(library(), name)(
        (ctypes.c_int64 * len(sizes))(*sizes),
        (ctypes.c_int64 * len(numbers))(*numbers),
        (ctypes.c_void_p * len(arrays))(*(None if x is None else x.data_ptr() for x in arrays)),
    )


def padded_size(dim: int) -> int:
    """Channels that the kernels take for a head of ``dim``."""
    return next(size for size in HEAD_SIZES if size >= dim)


def splits_of(planes: int, tiles: int) -> int:
    """Into how many parts with sums of their own to cut the tiles of a plane, for all threads."""
    return max(1, min(tiles, math.ceil(4 * torch.get_num_threads() / planes)))


def heads_last(x: Tensor) -> Tensor:
    """Uninitialised (B, h, H, W, d) like ``x``, whose memory is a channels-last map."""
    batch, heads, height, width, dim = x.shape
    return x.new_empty(batch, height, width, heads, dim).permute(0, 3, 1, 2, 4)


def as_heads(x: Tensor, like: Tensor) -> Tensor:
    """A ``heads_last`` result without added channels, in shape and dtype of ``like``."""
    if x.shape == like.shape and x.dtype == like.dtype:
        return x
    return heads_last(like).copy_(x[..., : like.shape[-1]])


def as_map(x: Tensor, dim: int) -> Tensor:
    """Float32 with ``dim`` channels, those added zero, and the last axis contiguous."""
    x = x.float()
    if x.shape[-1] != dim:
        return F.pad(x, (0, dim - x.shape[-1]))
    return x if x.stride(-1) == 1 else x.contiguous()

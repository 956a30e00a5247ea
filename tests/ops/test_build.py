"""How the C++ kernels are compiled, cached and loaded."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from operators import OPERATORS, check

from dat_pp.ops import deformable, deformable_attention, native, neighborhood
from dat_pp.ops.native import build

pytestmark = pytest.mark.filterwarnings('ignore:attention on CPUs is slow')


class Arguments(native.Arguments):
    _fields_ = (*native.fields(ctypes.c_int64, 'threads rows'),)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and no compiler found before."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    build._compiler.cache_clear()
    build._warn.cache_clear()
    yield tmp_path / 'dat_pp'
    build._compiler.cache_clear()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes ``$CXX`` a script, which may call the real compiler; returns its log of calls."""

    def make(script: str) -> Path:
        path, log = tmp_path / 'compiler', tmp_path / 'log'
        path.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv('CXX', str(path))
        return log

    return make


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small source in the place of an operator's."""
    path = tmp_path / 'small.cpp'
    path.write_text("""
        #include <cstdint>
        struct Arguments { int64_t threads, rows; };
        extern "C" const int64_t arguments_size = sizeof(Arguments), lanes = 8;
        extern "C" void forward_kernel(Arguments* a) { a->rows += ROWS; }
    """)
    return path


# Answers for another processor, compiles with the real compiler.
TARGET = 'case "$*" in *-shared*) exec c++ "$@";; *) echo "$TARGET";; esac'


def test_constant_and_arguments(source: Path) -> None:
    """Constants come from Python; the number of threads is PyTorch's."""
    kernels = native.Kernels(source, Arguments, ROWS=32)
    arguments = Arguments(rows=10)
    kernels('forward_kernel', arguments)
    assert arguments.rows == 42
    assert arguments.threads == torch.get_num_threads()
    assert kernels.lanes == 8


def test_wrong_mirror(source: Path) -> None:
    """A field that only one side has is found before anything is called."""

    class Longer(native.Arguments):
        _fields_ = (*native.fields(ctypes.c_int64, 'threads rows columns'),)

    with pytest.raises(RuntimeError, match=r'small.cpp has 16 bytes, its mirror in Python 24'):
        native.Kernels(source, Longer, ROWS=32).load()


# Without OpenMP, as with Clang, the kernels start threads themselves.
NO_OPENMP = 'case "$*" in *-shared*) exec c++ "$@";; *) echo "#define __clang__ 14";; esac'
SEVERAL_TASKS = {
    'deformable': dict(groups=2, size=(40, 21), samples=37, dim=24, table=(31, 9)),
    'neighborhood': dict(batch=2, heads=2, size=(37, 21), kernel=5, dim=24),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['c++', 'clang++', 'no OpenMP'])
@pytest.mark.parametrize('package', [deformable, neighborhood])
def test_real_kernels(
    package: ModuleType, name: str, compiler: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They compile without warnings with GCC and Clang, and compute the same on several threads."""
    if name == 'no OpenMP':
        log = compiler(NO_OPENMP)
    elif shutil.which(name):
        monkeypatch.setenv('CXX', f'{name} -Wall -Werror')
    else:
        pytest.skip(f'there is no {name}')
    real = package.native.KERNELS
    kernels = native.Kernels(real.source, real.arguments)
    kernels.flags = real.flags
    assert kernels.load() is None
    assert kernels.lanes in (8, 16)
    if name == 'no OpenMP':
        assert '-fopenmp' not in log.read_text()

    monkeypatch.setattr(package.native, 'KERNELS', kernels)
    operator = OPERATORS[package.__name__.rpartition('.')[2]]
    inputs = operator.make(**SEVERAL_TASKS[package.__name__.rpartition('.')[2]])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        check(operator, inputs, 'native')
        check(operator, operator.make(batch=0), 'native')
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(('macro', 'expected'), [('__GNUC__', True), ('__clang__', False)])
def test_openmp(compiler: Callable, source: Path, macro: str, expected: bool) -> None:
    """Of GCC only: Clang's would be a second runtime beside PyTorch's."""
    log = compiler(f'case "$*" in *-shared*) exec c++ "$@";; *) echo "#define {macro} 12";; esac')
    assert native.Kernels(source, Arguments, ROWS=1).load() is None
    assert ('-fopenmp' in log.read_text()) == expected


@pytest.mark.parametrize(
    ('refused', 'expected'),
    [('-march=native', '-mcpu=native'), ('native', ''), ('no-flag', '-march=native')],
)
def test_processor(compiler: Callable, source: Path, refused: str, expected: str) -> None:
    """A flag for the processor at hand, if the compiler has one: they differ on ARM."""
    log = compiler(
        f'case "$*" in *{refused}*) echo "error: unsupported" >&2; exit 1;; '
        '*-shared*) for last; do :; done; : > "$last";; esac'
    )
    native.Kernels(source, Arguments, ROWS=1).load()
    (command,) = (line for line in log.read_text().splitlines() if '-shared' in line)
    assert command.startswith(expected or '-O3')


WINDOWS = """
import sys, torch, warnings
sys.platform = 'win32'
for name in ('fcntl', 'grp', 'pwd', 'resource', 'termios'):
    sys.modules[name] = None
import dat_pp, dat_pp.compat.natten
q, bias = torch.rand(1, 1, 5, 5, 8, requires_grad=True), torch.zeros(1, 5, 5)
k, axis = torch.rand(1, 1, 4, 8), torch.zeros(5)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    for _ in range(3):
        dat_pp.neighborhood_attention(q, q, q, bias).sum().backward()
        dat_pp.deformable_attention(q, k, k, torch.zeros(1, 1, 4, 2), None, axis, axis)
print(*(warning.message for warning in caught), sep='\\n')
out = dat_pp.neighborhood_attention(q, q, q, bias)
assert torch.equal(out, dat_pp.neighborhood_attention(q, q, q, bias, backend='blocked'))
try:
    dat_pp.neighborhood_attention(q, q, q, bias, backend='native')
except ValueError as error:
    print(error)
"""


def test_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler is looked for: ``blocked`` runs after one warning."""
    monkeypatch.delenv('DAT_PP_BACKEND', raising=False)
    run = subprocess.run(
        [sys.executable, '-c', WINDOWS], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ''
    assert run.stdout.splitlines() == [
        'attention on CPUs is slow: its kernels have no Windows version',
        "backend is 'native', which cannot run: its kernels have no Windows version",
    ]
    assert not list(tmp_path.iterdir())


def test_constants_stand_once() -> None:
    """What Python hands over is not defined again in C++."""
    for package in (deformable, neighborhood):
        kernels = package.native.KERNELS
        text = build.HEADER.read_text() + kernels.source.read_text()
        names = [flag[2:].split('=')[0] for flag in kernels.flags if flag.startswith('-D')]
        assert len(names) >= 2
        for name in names:
            name = name.split('(')[0]
            assert name in text
            assert f'{name} =' not in text
            assert f'define {name}' not in text


def test_asking_compiles_nothing(compiler: Callable) -> None:
    log = compiler('exit 1')
    q = torch.zeros(1, 1, 3, 3, 8)
    assert native.unsupported_reason(q, 0.0) is None
    assert neighborhood.native.BACKEND.unsupported_reason(q, q, q, q, 0.0) is None
    assert not log.exists()


def test_kept(compiler: Callable, cache: Path, source: Path) -> None:
    log = compiler(TARGET)
    for _ in range(2):
        assert native.Kernels(source, Arguments, ROWS=1).load() is None
    assert log.read_text().count('-shared') == 1
    assert [path.suffix for path in cache.iterdir()] == ['.so']


def test_what_names_depend_on(
    compiler: Callable, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each compiler, processor (homes are shared), constant and text has a library of its own."""
    log = compiler(TARGET)
    assert native.Kernels(source, Arguments, ROWS=1).load() is None
    monkeypatch.setenv('TARGET', '#define __AVX2__ 1')
    assert native.Kernels(source, Arguments, ROWS=1).load() is None
    assert native.Kernels(source, Arguments, ROWS=2).load() is None
    source.write_text(source.read_text() + '\n')
    assert native.Kernels(source, Arguments, ROWS=2).load() is None
    monkeypatch.setenv('CXX', f'{os.environ["CXX"]} -O2')
    build._compiler.cache_clear()
    assert native.Kernels(source, Arguments, ROWS=2).load() is None
    assert log.read_text().count('-shared') == 5
    assert len(list(cache.iterdir())) == 5


def test_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, however many operators ask."""
    monkeypatch.setenv('CXX', 'no-such-compiler -O3')
    expected = 'there is no C++ compiler (no-such-compiler)'
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(2):
            assert native.unsupported_reason(torch.zeros(1, 8), 0.0) == expected
            assert native.Kernels(source, Arguments).load() == expected
    assert [str(w.message) for w in caught] == [f'attention on CPUs is slow: {expected}']


def test_failure_gives_way(compiler: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where compiling fails ``blocked`` runs, with one warning, and nothing is tried again."""
    log = compiler('case "$*" in *-shared*) echo "error: too old" >&2; exit 1;; esac')
    real = deformable.native.KERNELS
    kernels = native.Kernels(real.source, real.arguments)
    monkeypatch.setattr(deformable.native, 'KERNELS', kernels)
    monkeypatch.delenv('DAT_PP_BACKEND', raising=False)
    q, k, axis = torch.ones(1, 1, 3, 3, 8), torch.ones(1, 1, 4, 8), torch.zeros(3)
    inputs = q, k, k, torch.zeros(1, 1, 4, 2), None, axis, axis
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(2):
            assert torch.allclose(deformable_attention(*inputs), q)
    assert [str(w.message) for w in caught] == [
        'attention on CPUs is slow: its kernels do not compile: error: too old'
    ]
    assert log.read_text().count('-shared') == 1
    with pytest.raises(ValueError, match="'native', which cannot run: its kernels do not compile"):
        deformable_attention(*inputs, backend='native')


def test_compile_error(compiler: Callable, cache: Path, source: Path) -> None:
    """The first error is named, and nothing incomplete is kept."""
    failing = 'echo "native.cpp:1: note" >&2; echo "native.cpp:2: error: too old" >&2; exit 1'
    compiler(f'case "$*" in *-shared*) {failing};; esac')
    reason = native.Kernels(source, Arguments).load()
    assert reason == 'its kernels do not compile: native.cpp:2: error: too old'
    assert list(cache.iterdir()) == []


def test_killed_compiler(compiler: Callable, source: Path) -> None:
    """Without a word on stderr."""
    compiler('exit 1')
    reason = native.Kernels(source, Arguments).load()
    assert reason.startswith('its kernels do not compile: Command')


def test_cache_is_a_file(cache: Path, source: Path) -> None:
    cache.write_text('')
    reason = native.Kernels(source, Arguments, ROWS=1).load()
    assert reason.startswith('its cache folder cannot be made: [Errno 17]')
    assert str(cache) in reason


def test_cache_below_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing folder is not a missing compiler."""
    monkeypatch.setenv('XDG_CACHE_HOME', '/proc/no-such-folder')
    reason = native.Kernels(source, Arguments, ROWS=1).load()
    assert reason.startswith('its cache folder cannot be made: [Errno 2]')


def test_no_home(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(Path, 'home', home)
    reason = native.Kernels(source, Arguments, ROWS=1).load()
    assert reason == 'its cache folder cannot be made: Could not determine home directory.'


def test_broken_library(compiler: Callable, source: Path) -> None:
    compiler('for last; do :; done; case "$*" in *-shared*) echo nonsense > "$last";; esac')
    reason = native.Kernels(source, Arguments).load()
    assert reason.startswith('its kernels cannot be loaded: ')

"""How the CPU kernels are compiled, kept and found."""

import ctypes
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dat_pp.ops import native

pytestmark = pytest.mark.filterwarnings('ignore:attention on CPUs is slow')


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and nothing found before."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    native.library.cache_clear()
    yield tmp_path / 'dat_pp'
    native.library.cache_clear()


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


# Compiles something small in place of the kernels.
FAKE = """\
for last; do :; done
case "$*" in *-shared*) echo 'int answer() { return 42; }' | c++ -x c++ - -shared -fPIC -o "$last";;
*) echo "$TARGET";; esac"""


def test_real_kernels() -> None:
    """They compile without warnings worth an error and hold both operators."""
    assert native.obstacle() is None
    for name in ('deformable_attention', 'neighborhood_attention'):
        assert hasattr(native.library(), name)
        assert hasattr(native.library(), f'{name}_backward')


def test_kept(compiler: Callable, cache: Path) -> None:
    log = compiler(FAKE)
    for _ in range(2):
        assert isinstance(native.library(), ctypes.CDLL)
        native.library.cache_clear()
    assert log.read_text().count('-shared') == 1
    assert [path.suffix for path in cache.iterdir()] == ['.so']


def test_another_processor(
    compiler: Callable, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home on two kinds of machines: each gets a library of its own."""
    log = compiler(FAKE)
    for target in ('#define __AVX512F__ 1', '#define __AVX2__ 1'):
        monkeypatch.setenv('TARGET', target)
        assert isinstance(native.library(), ctypes.CDLL)
        native.library.cache_clear()
    assert log.read_text().count('-shared') == 2
    assert len(list(cache.iterdir())) == 2


def test_changed_source(
    compiler: Callable, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler(FAKE)
    source = tmp_path / 'native.cpp'
    monkeypatch.setattr(native, 'SOURCES', (source,))
    for text in ('one', 'two'):
        source.write_text(text)
        assert isinstance(native.library(), ctypes.CDLL)
        native.library.cache_clear()
    assert len(list(cache.iterdir())) == 2


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CXX', 'no-such-compiler -O3')
    with pytest.warns(UserWarning, match='attention on CPUs is slow: there is no C'):
        native.library()
    assert native.obstacle() == 'there is no C++ compiler (no-such-compiler)'


def test_compile_error(compiler: Callable, cache: Path) -> None:
    """The first error is named, and nothing half made is kept."""
    failing = 'echo "native.cpp:1: note" >&2; echo "native.cpp:2: error: too old" >&2; exit 1'
    compiler(f'case "$*" in *-shared*) {failing};; esac')
    assert native.obstacle() == 'its kernels do not compile: native.cpp:2: error: too old'
    assert list(cache.iterdir()) == []


def test_killed_compiler(compiler: Callable) -> None:
    """Without a word on stderr."""
    compiler('exit 1')
    assert native.obstacle().startswith('its kernels do not compile: Command')


def test_cache_is_a_file(cache: Path) -> None:
    cache.write_text('')
    assert native.obstacle().startswith('its kernels cannot be made: [Errno 17]')


def test_broken_library(compiler: Callable) -> None:
    compiler('for last; do :; done; case "$*" in *-shared*) echo nonsense > "$last";; esac')
    assert native.obstacle().startswith('its kernels cannot be made: ')

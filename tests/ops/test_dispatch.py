"""Which backend of an operator runs, and why a forced one cannot."""

import os
from types import SimpleNamespace

import pytest
import torch

from dat_pp.ops import (
    custom_op,
    deformable,
    dispatch,
    native,
    neighborhood,
    triton,
    use_backend,
)
from dat_pp.ops.dispatch import Backend

pytestmark = pytest.mark.usefixtures('default_backend')


def select(backends: dict[str, Backend], forced: str | None = None, device: str = 'cpu') -> str:
    q = SimpleNamespace(device=torch.device(device))
    return dispatch.select(backends, (q, 0.0), forced).name


def backends(**reasons: str | None) -> dict[str, Backend]:
    """Four backends for two device types and any; each cannot run for the reason given."""
    return dispatch.by_name(
        Backend('cpu', run, lambda *_: reasons.get('cpu'), lambda: reasons.get('load'), 'cpu'),
        Backend('gpu', run, lambda *_: reasons.get('gpu'), device='cuda'),
        Backend('any', run, lambda *_: reasons.get('any')),
        Backend('definition', run),
    )


def run(*_: object) -> None:
    raise AssertionError('select must not run anything')


def test_default() -> None:
    assert select(backends()) == 'cpu'
    assert select(backends(), device='cuda') == 'gpu'
    assert select(backends(), device='xpu') == 'any'
    assert select(backends(cpu='no')) == 'any'
    assert select(backends(load='no')) == 'any'
    assert select(backends(cpu='no', any='no')) == 'definition'


def test_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument counts more than the variable, and the device does not matter."""
    assert select(backends(), 'any') == 'any'
    monkeypatch.setenv('DAT_PP_BACKEND', 'gpu')
    assert select(backends()) == 'gpu'
    assert select(backends(), 'any') == 'any'
    monkeypatch.setenv('DAT_PP_BACKEND', '')
    assert select(backends()) == 'cpu'


@pytest.mark.parametrize('user', [None, 'gpu'])
def test_use_backend(user: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts more than the user's variable, which is restored after an error, too."""
    if user:
        monkeypatch.setenv('DAT_PP_BACKEND', user)
    with use_backend('any'):
        assert select(backends()) == 'any'
        with use_backend(None):
            assert select(backends()) == 'cpu'
        assert select(backends()) == 'any'
    assert select(backends()) == (user or 'cpu')
    with pytest.raises(KeyError), use_backend('any'):
        raise KeyError
    assert os.environ.get('DAT_PP_BACKEND') == user


def test_forced_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend is 'cpu', which cannot run: too odd"):
        select(backends(cpu='too odd'), 'cpu')
    with pytest.raises(ValueError, match="backend is 'cpu', which cannot run: not compiled"):
        select(backends(load='not compiled'), 'cpu')
    with pytest.raises(ValueError, match="backend is 'x'; choose one of any, cpu, definition, gpu"):
        select(backends(), 'x')
    monkeypatch.setenv('DAT_PP_BACKEND', 'gpu')
    with pytest.raises(ValueError, match="DAT_PP_BACKEND is 'gpu', which cannot run: no"):
        select(backends(gpu='no'))


def test_reasons_load_nothing() -> None:
    """An unsupported input is refused before anything is compiled or imported."""

    def load() -> str:
        raise AssertionError

    only = dispatch.by_name(Backend('cpu', run, lambda *_: 'no', load, 'cpu'), Backend('any', run))
    assert select(only) == 'any'
    with pytest.raises(ValueError, match='cannot run: no'):
        select(only, 'cpu')


@pytest.mark.parametrize('package', [deformable, neighborhood])
def test_backends_of_operators(package: object) -> None:
    """The name of a backend is that of its file; the last one is the definition."""
    names = list(package.BACKENDS)
    assert names[0] == 'native'
    assert names[-1] == 'reference'
    for name, backend in package.BACKENDS.items():
        assert getattr(package, name).BACKEND is backend
        assert backend.name == name


def queries(dtype: torch.dtype = torch.float16, dim: int = 32, device: str = 'cpu') -> object:
    device = torch.device(device)
    return SimpleNamespace(
        device=device, is_cuda=device.type == 'cuda', dtype=dtype, shape=(1, 1, 3, 3, dim)
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_supported(dtype: torch.dtype) -> None:
    for dim in (7, 24, 64):
        assert native.unsupported_reason(queries(dtype, dim), 0.0) is None
        assert triton.unsupported_reason(queries(dtype, dim, 'cuda'), 0.0) is None


def test_unsupported() -> None:
    assert custom_op.unsupported_reason(queries(torch.float64), 0.0, 64) == 'it has no float64'
    assert custom_op.unsupported_reason(queries(), 0.1, 64) == (
        'it has no dropout of attention weights'
    )
    assert native.unsupported_reason(queries(dim=96), 0.0) == 'a head of size 96 is above 64'
    assert native.unsupported_reason(queries(device='cuda'), 0.0) == 'it is for CPUs, not cuda'
    reason = triton.unsupported_reason(queries(dim=160, device='cuda'), 0.0)
    assert reason == 'a head of size 160 is above 128'


def test_not_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, 'interpreted', lambda: False)
    reason = triton.unsupported_reason(queries(), 0.0)
    assert reason == 'on cpu it needs TRITON_INTERPRET=1 before its first use'


def test_large_window() -> None:
    q = torch.zeros(1, 1, 19, 19, 8)
    bias = torch.zeros(1, 37, 37)
    with pytest.raises(ValueError, match='cannot run: a window of 19 is above 17'):
        neighborhood.neighborhood_attention(q, q, q, bias, backend='native')
    assert neighborhood.neighborhood_attention(q, q, q, bias).shape == q.shape


def test_operators_ask() -> None:
    """Both pass their inputs and the dropout probability on."""
    q = torch.zeros(1, 1, 3, 3, 8)
    with pytest.raises(ValueError, match='no dropout'):
        neighborhood.neighborhood_attention(q, q, q, torch.zeros(1, 5, 5), 0.5, backend='native')
    k, axis = torch.zeros(1, 1, 4, 8), torch.zeros(3)
    positions = torch.zeros(1, 1, 4, 2)
    for backend in ('native', 'triton'):
        with pytest.raises(ValueError, match='no dropout'):
            deformable.deformable_attention(q, k, k, positions, None, axis, axis, 0.5, backend)

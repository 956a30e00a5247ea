"""Which implementation of an operator runs, and why a forced one cannot."""

from types import SimpleNamespace

import pytest
import torch
import triton.language as tl

from dat_pp.ops import backend, deformable_attention, neighborhood_attention

BACKENDS = {'reference': 1, 'blocked': 2, 'triton': 3}


def queries(is_cuda: bool = True, dtype: torch.dtype = torch.float16, dim: int = 32):
    """What the choice looks at."""
    device = torch.device('cuda' if is_cuda else 'cpu')
    return SimpleNamespace(is_cuda=is_cuda, device=device, dtype=dtype, shape=(1, 1, 1, 1, dim))


def select(q, k=None, dropout_p: float = 0.0, forced: str | None = None) -> int:
    return backend.select_backend(BACKENDS, q, k or q, q, dropout_p, forced)


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('DAT_PP_BACKEND', raising=False)
    monkeypatch.setattr(backend, 'INTERPRETED', tl.constexpr(False))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_default(dtype: torch.dtype) -> None:
    assert select(queries(dtype=dtype)) == 3
    assert select(queries(dtype=dtype, dim=24)) == 3
    assert select(queries(is_cuda=False, dtype=dtype)) == 2


OBSTACLES = {
    'it has no float64': dict(q=queries(dtype=torch.float64)),
    'a head of size 160 is above 128': dict(q=queries(dim=160)),
    'it has no dropout of attention weights': dict(q=queries(), dropout_p=0.1),
    'q, k and v differ in dtype: float16, float32, float16': dict(
        q=queries(), k=queries(dtype=torch.float32)
    ),
    'on cpu it needs TRITON_INTERPRET=1 before triton is imported': dict(q=queries(is_cuda=False)),
}


@pytest.mark.parametrize('obstacle', OBSTACLES)
def test_obstacles(obstacle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = OBSTACLES[obstacle]
    assert select(**case) == 2
    with pytest.raises(ValueError, match=f"backend is 'triton', which cannot run: {obstacle}"):
        select(**case, forced='triton')
    monkeypatch.setenv('DAT_PP_BACKEND', 'triton')
    with pytest.raises(ValueError, match=f"DAT_PP_BACKEND is 'triton', .* run: {obstacle}"):
        select(**case)
    assert select(**case, forced='reference') == 1


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, 'HAS_TRITON', False)
    assert select(queries()) == 2
    with pytest.raises(ValueError, match='cannot run: triton is not installed'):
        select(queries(), forced='triton')


def test_operators_say_why() -> None:
    """Both operators ask before they run anything."""
    q = torch.zeros(1, 1, 3, 3, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match='cannot run: on cpu'):
        neighborhood_attention(q, q, q, torch.zeros(1, 5, 5).double(), backend='triton')
    k = torch.zeros(1, 1, 4, 8, dtype=torch.float64)
    positions, axis = torch.zeros(1, 1, 4, 2).double(), torch.zeros(3).double()
    with pytest.raises(ValueError, match='cannot run: on cpu'):
        deformable_attention(q, k, k, positions, None, axis, axis, backend='triton')

"""Which implementation of an operator runs, and why a forced one cannot."""

from types import SimpleNamespace

import pytest
import torch
import triton.language as tl

from dat_pp.ops import backend, deformable_attention, neighborhood_attention

BACKENDS = {'reference': 1, 'blocked': 2, 'triton': 3, 'native': 4}


def queries(is_cuda: bool = True, dtype: torch.dtype = torch.float16, dim: int = 32):
    """What the choice looks at."""
    device = torch.device('cuda' if is_cuda else 'cpu')
    return SimpleNamespace(is_cuda=is_cuda, device=device, dtype=dtype, shape=(1, 1, 1, 1, dim))


def select(
    q, k=None, dropout_p: float = 0.0, forced: str | None = None, further: dict | None = None
) -> int:
    return backend.select_backend(BACKENDS, q, k or q, q, dropout_p, forced, further)


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('DAT_PP_BACKEND', raising=False)
    monkeypatch.setattr(backend, 'INTERPRETED', tl.constexpr(False))
    monkeypatch.setattr(backend.native, 'obstacle', lambda: None)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_default(dtype: torch.dtype) -> None:
    assert select(queries(dtype=dtype)) == 3
    assert select(queries(dtype=dtype, dim=24)) == 3
    assert select(queries(is_cuda=False, dtype=dtype)) == 4
    assert select(queries(is_cuda=False, dtype=dtype, dim=7)) == 4


on_cpu = queries(is_cuda=False)
OBSTACLES = {
    'triton': {
        'it has no float64': dict(q=queries(dtype=torch.float64)),
        'a head of size 160 is above 128': dict(q=queries(dim=160)),
        'it has no dropout of attention weights': dict(q=queries(), dropout_p=0.1),
        'q, k and v differ in dtype: float16, float32, float16': dict(
            q=queries(), k=queries(dtype=torch.float32)
        ),
    },
    'native': {
        'it has no float64': dict(q=queries(is_cuda=False, dtype=torch.float64)),
        'a head of size 96 is above 64': dict(q=queries(is_cuda=False, dim=96)),
        'it has no dropout of attention weights': dict(q=on_cpu, dropout_p=0.1),
        'q, k and v differ in dtype: float16, float32, float16': dict(
            q=on_cpu, k=queries(is_cuda=False, dtype=torch.float32)
        ),
        'of its own': dict(q=on_cpu, further={'native': 'of its own'}),
    },
}


@pytest.mark.parametrize(
    ('name', 'obstacle'), [(name, why) for name, cases in OBSTACLES.items() for why in cases]
)
def test_obstacles(name: str, obstacle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = OBSTACLES[name][obstacle]
    assert select(**case) == 2
    with pytest.raises(ValueError, match=f"backend is '{name}', which cannot run: {obstacle}"):
        select(**case, forced=name)
    monkeypatch.setenv('DAT_PP_BACKEND', name)
    with pytest.raises(ValueError, match=f"DAT_PP_BACKEND is '{name}', .* run: {obstacle}"):
        select(**case)
    assert select(**case, forced='reference') == 1


def test_wrong_device() -> None:
    with pytest.raises(ValueError, match='run: on cpu it needs TRITON_INTERPRET=1 before triton'):
        select(on_cpu, forced='triton')
    with pytest.raises(ValueError, match='run: it is for CPUs, not cuda'):
        select(queries(), forced='native')


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.native, 'obstacle', lambda: 'there is no C++ compiler (c++)')
    assert select(on_cpu) == 2
    with pytest.raises(ValueError, match=r'cannot run: there is no C\+\+ compiler'):
        select(on_cpu, forced='native')


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


def test_large_window() -> None:
    q = torch.zeros(1, 1, 19, 19, 8)
    bias = torch.zeros(1, 37, 37)
    with pytest.raises(ValueError, match='cannot run: a window of 19 is above 17'):
        neighborhood_attention(q, q, q, bias, backend='native')
    assert neighborhood_attention(q, q, q, bias).shape == q.shape

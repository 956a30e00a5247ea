"""mmengine's FLOP counter counts the custom operators like their definition."""

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from torch import Tensor, nn

from dat_pp.compat.flops import handlers
from dat_pp.ops import deformable_attention, neighborhood_attention
from dat_pp.ops.flops import FORMULAS, deformable_attention_flops

HEADS, HEIGHT, WIDTH, DIM, SAMPLES, KERNEL = 4, 9, 11, 8, 12, 5


class Deformable(nn.Module):
    def __init__(self, backend: str, table: bool) -> None:
        super().__init__()
        self.backend = backend
        self.table = torch.zeros(HEADS, 13, 13) if table else None

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        positions = torch.zeros(q.shape[0], 2, SAMPLES, 2)
        axes = torch.zeros(HEIGHT), torch.zeros(WIDTH)
        return deformable_attention(q, k, k, positions, self.table, *axes, backend=self.backend)


class Neighborhood(nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, q: Tensor) -> Tensor:
        bias = torch.zeros(HEADS, 2 * KERNEL - 1, 2 * KERNEL - 1)
        return neighborhood_attention(q, q, q, bias, backend=self.backend)


def flops(model: nn.Module, *inputs: Tensor) -> int:
    return FlopAnalyzer(model, inputs).unsupported_ops_warnings(False).total()


@pytest.mark.parametrize('backend', ['reference', 'native', 'triton'])
@pytest.mark.parametrize('batch', [1, 2])
def test_deformable_attention(backend: str, batch: int) -> None:
    q, k = torch.rand(batch, HEADS, HEIGHT, WIDTH, DIM), torch.rand(batch, HEADS, SAMPLES, DIM)
    logits = batch * HEADS * HEIGHT * WIDTH * SAMPLES
    assert flops(Deformable(backend, table=False), q, k) == 2 * logits * DIM
    assert flops(Deformable(backend, table=True), q, k) == 2 * logits * DIM + 4 * logits


@pytest.mark.parametrize('backend', ['native', 'triton'])
def test_neighborhood_attention(backend: str) -> None:
    q = torch.rand(2, HEADS, HEIGHT, WIDTH, DIM)
    assert flops(Neighborhood(backend), q) == 2 * q.numel() * KERNEL**2
    # mmengine reads a count of floating-point operations off NumPy's einsum_path: nearly the same.
    assert flops(Neighborhood('reference'), q) == pytest.approx(2 * q.numel() * KERNEL**2, rel=0.01)


def test_new_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that registers its formula is counted; gradients are never traced."""
    name = 'dat_pp::sdpa_deformable_attention'
    monkeypatch.setitem(FORMULAS, name, deformable_attention_flops)
    found = handlers()
    assert found[name] is found['dat_pp::native_deformable_attention']
    assert set(found) == {name for name in FORMULAS if not name.endswith('_backward')}

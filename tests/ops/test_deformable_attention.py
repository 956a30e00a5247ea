"""Deformable attention: the definition against a loop, the backends against the definition."""

import math

import pytest
import torch
from torch import Tensor

from dat_pp.ops import deformable_attention
from dat_pp.ops.deformable_attention import blocked


def make(
    batch: int, heads: int, groups: int, size: tuple[int, int], samples: int, dim: int, native: int
) -> list[Tensor]:
    """Random q, k, v, positions, table, query_y, query_x in float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    height, width = size
    query = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in size]
    return [
        normal(batch, heads, height, width, dim),
        normal(batch, heads, samples, dim),
        normal(batch, heads, samples, dim),
        normal(batch, groups, samples, 2),  # some lie outside [-1, 1]
        normal(heads, 2 * native - 1, 2 * native + 3),
        *query,
    ]


CASES = {
    'one group': make(1, 2, 1, (3, 4), 5, 4, 4),
    'groups': make(2, 4, 2, (5, 2), 6, 8, 7),
    'one query': make(1, 1, 1, (1, 1), 1, 2, 2),
    'long': make(2, 2, 2, (9, 7), 13, 4, 3),
}


def lookup(table: Tensor, displacement: Tensor) -> float:
    """Bilinear value of a table at half a displacement in [-1, 1]; zero outside."""
    rows, columns = table.shape
    y, x = (
        ((d.item() / 2 + 1) / 2 * (n - 1))
        for d, n in zip(displacement, (rows, columns), strict=True)
    )
    value = 0.0
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < rows and 0 <= j < columns:
                value += max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * table[i, j].item()
    return value


@pytest.mark.parametrize('case', CASES)
def test_definition(case: str) -> None:
    q, k, v, positions, table, query_y, query_x = CASES[case]
    out = deformable_attention(*CASES[case], backend='reference')
    batch, heads, height, width, dim = q.shape
    group_heads = heads // positions.shape[1]
    for b in range(batch):
        for h in range(heads):
            for y in range(height):
                for x in range(width):
                    here = torch.stack((query_y[y], query_x[x]))
                    samples = positions[b, h // group_heads]
                    bias = torch.tensor([lookup(table[h], here - s) for s in samples])
                    logits = k[b, h] @ q[b, h, y, x] / dim**0.5 + bias
                    expected = logits.softmax(0) @ v[b, h]
                    torch.testing.assert_close(out[b, h, y, x], expected)


@pytest.mark.parametrize('max_logits', [1, 200, 2**24])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('with_table', [True, False])
def test_blocked(
    case: str,
    dtype: torch.dtype,
    max_logits: int,
    with_table: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Outputs and all gradients agree with the reference, whatever the size of a block."""
    monkeypatch.setitem(blocked.__globals__, 'MAX_LOGITS', max_logits)
    results = []
    for backend in ('reference', 'blocked'):
        inputs = [t.clone() for t in CASES[case]]
        inputs[:3] = [t.to(dtype) for t in inputs[:3]]
        inputs[3:] = [t.to(torch.promote_types(dtype, torch.float32)) for t in inputs[3:]]
        leaves = [t.requires_grad_() for t in (inputs[:5] if with_table else inputs[:3])]
        if not with_table:
            inputs[4] = None
        out = deformable_attention(*inputs, backend=backend)
        assert out.dtype == dtype
        (out * torch.linspace(-1, 1, out.numel()).to(dtype).view(out.shape)).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for actual, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('backend', ['reference', 'blocked'])
def test_gradcheck(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocked.__globals__, 'MAX_LOGITS', 40)
    inputs = [t.clone().requires_grad_(i < 5) for i, t in enumerate(CASES['one group'])]
    torch.autograd.gradcheck(lambda *args: deformable_attention(*args, backend=backend), inputs)


def test_dropout() -> None:
    inputs = CASES['long']
    torch.manual_seed(0)
    outs = [deformable_attention(*inputs, dropout_p=0.5, backend='reference') for _ in range(400)]
    expected = deformable_attention(*inputs)
    assert not torch.allclose(outs[0], expected)
    error = (torch.stack(outs).mean(0) - expected).abs().max() / expected.abs().max()
    assert error < 0.3


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, positions, table, query_y, query_x = CASES['groups']
    with pytest.raises(ValueError, match=r'k and v must be \(2, 4, 6, 8\)'):
        deformable_attention(q, k[:, :, 1:], v, positions, table, query_y, query_x)
    with pytest.raises(ValueError, match='3 groups of positions do not divide 4 heads'):
        deformable_attention(q, k, v, positions[:, [0, 0, 1]], table, query_y, query_x)
    with pytest.raises(ValueError, match=r'table must be \(4, rows, columns\)'):
        deformable_attention(q, k, v, positions, table[1:], query_y, query_x)
    with pytest.raises(ValueError, match='query_y and query_x must have 5 and 2 elements'):
        deformable_attention(q, k, v, positions, table, query_x, query_y)
    with pytest.raises(
        ValueError, match="backend is 'cuda'; choose one of blocked, native, reference"
    ):
        deformable_attention(*CASES['groups'], backend='cuda')
    monkeypatch.setenv('DAT_PP_BACKEND', 'magic')
    with pytest.raises(ValueError, match="DAT_PP_BACKEND is 'magic'"):
        deformable_attention(*CASES['groups'])

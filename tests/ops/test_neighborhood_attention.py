"""Neighborhood attention: the definition against a loop, the backends against the definition."""

import pytest
import torch
from torch import Tensor

from dat_pp.ops import neighborhood_attention
from dat_pp.ops.neighborhood_attention import blocked


def make(batch: int, heads: int, size: tuple[int, int], dim: int, kernel: int) -> list[Tensor]:
    """Random q, k, v, bias in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, *size, dim)] * 3 + [(heads, 2 * kernel - 1, 2 * kernel - 1)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


CASES = {
    'just the window': make(1, 2, (3, 3), 4, 3),
    'one key': make(2, 1, (4, 2), 2, 1),
    'odd': make(2, 2, (7, 11), 4, 5),
    'several tiles': make(1, 1, (17, 9), 3, 7),
    'wide': make(1, 2, (5, 40), 2, 3),
}


@pytest.mark.parametrize('case', CASES)
def test_definition(case: str) -> None:
    q, k, v, bias = CASES[case]
    out = neighborhood_attention(q, k, v, bias, backend='reference')
    batch, heads, height, width, dim = q.shape
    kernel = (bias.shape[-1] + 1) // 2
    for b in range(batch):
        for h in range(heads):
            for y in range(height):
                for x in range(width):
                    top = min(max(y - kernel // 2, 0), height - kernel)
                    left = min(max(x - kernel // 2, 0), width - kernel)
                    keys = [
                        (i, j) for i in range(top, top + kernel) for j in range(left, left + kernel)
                    ]
                    logits = torch.stack(
                        [
                            q[b, h, y, x] @ k[b, h, i, j] / dim**0.5
                            + bias[h, i - y + kernel - 1, j - x + kernel - 1]
                            for i, j in keys
                        ]
                    )
                    values = torch.stack([v[b, h, i, j] for i, j in keys])
                    torch.testing.assert_close(out[b, h, y, x], logits.softmax(0) @ values)


@pytest.mark.parametrize('max_logits', [1, 20_000, 2**24])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('case', CASES)
def test_blocked(
    case: str, dtype: torch.dtype, max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and all gradients agree with the reference, whatever the size of a block."""
    monkeypatch.setitem(blocked.__globals__, 'MAX_LOGITS', max_logits)
    results = []
    for backend in ('reference', 'blocked'):
        inputs = [t.to(dtype).requires_grad_() for t in (t.clone() for t in CASES[case])]
        out = neighborhood_attention(*inputs, backend=backend)
        assert out.dtype == dtype
        (out * torch.linspace(-1, 1, out.numel()).to(dtype).view(out.shape)).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in inputs)])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2}[dtype]
    for actual, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('backend', ['reference', 'blocked'])
def test_gradcheck(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocked.__globals__, 'MAX_LOGITS', 1)
    inputs = [t.requires_grad_() for t in make(1, 1, (9, 3), 2, 3)]
    torch.autograd.gradcheck(lambda *args: neighborhood_attention(*args, backend=backend), inputs)


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, bias = CASES['odd']
    with pytest.raises(ValueError, match='q, k and v must have one shape'):
        neighborhood_attention(q, k[:, :, 1:], v, bias)
    with pytest.raises(ValueError, match=r'bias must be \(2, 2 K - 1, 2 K - 1\) with K odd'):
        neighborhood_attention(q, k, v, bias[:, 1:, 1:])
    with pytest.raises(ValueError, match='a 4 x 11 map is smaller than the 5 x 5 window'):
        neighborhood_attention(q[:, :, :4], k[:, :, :4], v[:, :, :4], bias)
    monkeypatch.setenv('DAT_PP_BACKEND', 'magic')
    with pytest.raises(ValueError, match="DAT_PP_BACKEND is 'magic'; choose one of blocked"):
        neighborhood_attention(q, k, v, bias)

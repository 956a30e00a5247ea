"""Neighborhood attention: the definition against a loop, and cases that only it has."""

import pytest
import torch
from operators import CUSTOM, DEVICE, OPERATORS, check

from dat_pp.ops import neighborhood_attention
from dat_pp.ops.neighborhood import triton

OPERATOR = OPERATORS['neighborhood']
make = OPERATOR.make

CASES = {
    'just the window': dict(heads=2, size=(3, 3), dim=4),
    'one key': dict(batch=2, size=(4, 2), dim=2, kernel=1),
    'odd': dict(heads=2, size=(6, 7), dim=4, kernel=5),
    'wide': dict(size=(5, 20), dim=2),
}


@pytest.mark.parametrize('case', CASES)
def test_definition(case: str) -> None:
    q, k, v, bias = (x.double() for x in make(**CASES[case]))
    out = neighborhood_attention(q, k, v, bias, backend='reference')
    batch, heads, height, width, dim = q.shape
    kernel = (bias.shape[-1] + 1) // 2
    for b, h, y, x in torch.cartesian_prod(*map(torch.arange, (batch, heads, height, width))):
        top = min(max(y - kernel // 2, 0), height - kernel)
        left = min(max(x - kernel // 2, 0), width - kernel)
        window = b, h, slice(top, top + kernel), slice(left, left + kernel)
        first = top - y + kernel - 1, left - x + kernel - 1
        window_bias = bias[h, first[0] : first[0] + kernel, first[1] : first[1] + kernel]
        logits = (k[window] @ q[b, h, y, x] / dim**0.5 + window_bias).flatten()
        expected = logits.softmax(0) @ v[window].flatten(0, 1)
        torch.testing.assert_close(out[b, h, y, x], expected)


@pytest.mark.parametrize('backend', [*CUSTOM, 'blocked'])
def test_tiles(backend: str) -> None:
    """Whole and partial tiles at every border of the map."""
    check(OPERATOR, make(size=(17, 10)), backend)


@pytest.mark.parametrize('kernel', [5, pytest.param(13, marks=pytest.mark.slow)])
def test_large_windows(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == 'cpu':  # one program: the interpreter is slow
        monkeypatch.setattr(triton, 'TILE', 16)
    check(OPERATOR, make(size=(kernel, 15), kernel=kernel), 'triton')

"""Deformable attention: the definition against a loop, and cases that only it has."""

import math

import pytest
import torch
from operators import CUSTOM, DEVICE, OPERATORS, check, random
from torch import Tensor

from dat_pp.ops import deformable_attention
from dat_pp.ops.deformable import triton

OPERATOR = OPERATORS['deformable']
make = OPERATOR.make


@pytest.fixture(params=CUSTOM)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


CASES = {
    'one group': dict(group_heads=2, size=(3, 4), samples=5, dim=4),
    'groups': dict(batch=2, groups=2, group_heads=2, size=(5, 2), samples=6, table=(13, 17)),
    'one query': dict(size=(1, 1), samples=1, dim=2, table=(3, 7)),
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
    inputs = [x.double() for x in make(**CASES[case])]
    q, k, v, positions, table, query_y, query_x = inputs
    out = deformable_attention(*inputs, backend='reference')
    batch, heads, height, width, dim = q.shape
    group_heads = heads // positions.shape[1]
    for b, h, y, x in torch.cartesian_prod(*map(torch.arange, (batch, heads, height, width))):
        here = torch.stack((query_y[y], query_x[x]))
        samples = positions[b, h // group_heads]
        bias = torch.stack([torch.tensor(lookup(table[h], here - s)) for s in samples])
        logits = k[b, h] @ q[b, h, y, x] / dim**0.5 + bias.to(q)
        torch.testing.assert_close(out[b, h, y, x], logits.softmax(0) @ v[b, h])


def test_dropout() -> None:
    inputs = make(batch=2, groups=2, size=(9, 7), samples=13, dim=4)
    torch.manual_seed(0)
    outs = [deformable_attention(*inputs, dropout_p=0.5, backend='reference') for _ in range(400)]
    expected = deformable_attention(*inputs)
    assert not torch.allclose(outs[0], expected)
    error = (torch.stack(outs).mean(0) - expected).abs().max() / expected.abs().max()
    assert error < 0.3


def test_groups(backend: str) -> None:
    """Two heads share the positions of each of two groups, in two images."""
    check(OPERATOR, make(2, 2, 2, (2, 3), samples=3), backend)


def test_cell_borders(backend: str) -> None:
    """Displacements at exactly whole cells, among them the border of the table and one beyond."""
    q, k, v, _, _, query_y, query_x = make(size=(5, 3), samples=49)
    steps = torch.arange(-3, 4, device=DEVICE) / 2
    positions = torch.cartesian_prod(steps, steps)[None, None]
    table = random(1, 9, 5, seed=4)
    cells = ((query_y[:, None] - steps) / 2 + 1) * 4
    assert set(range(-1, 10)) <= set(cells.flatten().tolist())
    check(OPERATOR, [q, k, v, positions, table, query_y, query_x], backend)


@pytest.mark.parametrize('table', [(7, 9), (1, 1)])
@pytest.mark.parametrize('far', [1e6, torch.inf])
@pytest.mark.parametrize('backend', [*CUSTOM, 'blocked', 'reference'])
def test_far_outside(backend: str, far: float, table: tuple[int, int]) -> None:
    """Beyond the table the bias and its gradients are zero; a table of one entry has no outside."""
    inputs = make(table=table)
    inputs[3] = inputs[3].sign() * far
    without = [*inputs[:4], None, *inputs[5:]]
    inputs[3].requires_grad_()
    inputs[4].requires_grad_()
    out = deformable_attention(*inputs, backend=backend)
    out.square().sum().backward()
    assert not inputs[3].grad.any()
    expected = deformable_attention(*without, backend='reference')
    torch.testing.assert_close(out.detach(), expected, rtol=1e-5, atol=1e-5)
    if table != (1, 1):
        assert not inputs[4].grad.any()


@pytest.mark.filterwarnings('ignore:invalid value:RuntimeWarning')  # Triton's interpreter
@pytest.mark.parametrize('table', [(7, 9), (1, 1)])
@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('backend', [*CUSTOM, 'blocked', 'reference'])
def test_nan_positions(backend: str, axis: int, table: tuple[int, int]) -> None:
    """NaN reaches the outputs of the heads that use the position, and no others."""
    inputs = make(groups=2, table=table)
    inputs[3][0, 0, 4, axis] = torch.nan
    out = deformable_attention(*inputs, backend=backend)
    assert out[:, 0].isnan().all()
    assert out[:, 1].isfinite().all()


@pytest.mark.filterwarnings('ignore::RuntimeWarning')  # of rows that are computed and dropped
def test_very_negative_logits(backend: str) -> None:
    """Samples that pad a block have logits of 0, which must not count beside -1000."""
    q, k, *rest = make(samples=18, table=None)
    inputs = [q.abs() * 8, k.abs() * -32, *rest]
    check(OPERATOR, inputs, backend, factor=100)


def test_many_queries() -> None:
    """So many that the gradients of the samples are summed in two splits."""
    check(OPERATOR, make(size=(17, 16), samples=5), 'triton')


@pytest.mark.parametrize('max_logits', [1, 2 * 4 * 5 * 2, 2 * 4 * 5 * 3])
def test_slabs(max_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the table by one or two rows at a time, and by images."""
    monkeypatch.setattr(triton, 'MAX_LOGITS', max_logits)
    check(OPERATOR, make(2, 1, 2, (3, 5), samples=4), 'triton')


@pytest.mark.parametrize('asking', [(0, 1, 2, 3), (4,)])
def test_some_gradients(backend: str, asking: tuple[int, ...]) -> None:
    check(OPERATOR, make(samples=3), backend, asking)

"""Inputs that do not fit are refused before any backend runs; an empty batch is none of them."""

from collections.abc import Callable

import pytest
import torch
from operators import CUSTOM, OPERATORS, Inputs, Operator, check

from dat_pp.ops import deformable_attention, neighborhood_attention

BACKENDS = [*CUSTOM, 'blocked', 'reference']
Q, K, V, POSITIONS, TABLE, QUERY_Y, QUERY_X = range(7)
BIAS = 3


def replaced(index: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    """Changes one input."""

    def apply(inputs: Inputs) -> Inputs:
        return [change(x) if i == index else x for i, x in enumerate(inputs)]

    return apply


DEFORMABLE = {
    r'q must be \(B, h, H, W, d\), only B may be 0; got \(2, 4, 5, 2\)': replaced(
        Q, lambda x: x[..., 0]
    ),
    r'only B may be 0; got \(2, 4, 0, 2, 8\)': replaced(Q, lambda x: x[:, :, :0]),
    r'only B may be 0; got \(2, 4, 5, 2, 0\)': replaced(Q, lambda x: x[..., :0]),
    'q must be floating point, got int64': replaced(Q, torch.Tensor.long),
    r'k and v must be \(2, 4, 6, 8\) to fit q and positions': replaced(K, lambda x: x[:, :, 1:]),
    'k must be float32, got float16': replaced(K, torch.Tensor.half),
    'v must be float32, got float64': replaced(V, torch.Tensor.double),
    r'positions must be \(2, g, N, 2\), got \(1, 2, 6, 2\)': replaced(POSITIONS, lambda x: x[:1]),
    r'positions must be \(2, g, N, 2\), got \(2, 2, 6\)': replaced(POSITIONS, lambda x: x[..., 0]),
    r'positions must be \(2, g, N, 2\), got \(2, 2, 6, 1\)': replaced(
        POSITIONS, lambda x: x[..., :1]
    ),
    r'positions must hold samples, got \(2, 0, 6, 2\)': replaced(POSITIONS, lambda x: x[:, :0]),
    r'positions must hold samples, got \(2, 2, 0, 2\)': replaced(POSITIONS, lambda x: x[:, :, :0]),
    'positions must be float32 or float64, got float16': replaced(POSITIONS, torch.Tensor.half),
    'positions must be on .*, got meta': replaced(POSITIONS, lambda x: x.to('meta')),
    '3 groups of positions do not divide 4 heads': replaced(POSITIONS, lambda x: x[:, [0, 0, 1]]),
    r'table must be \(4, rows, columns\), got \(3, 7, 9\)': replaced(TABLE, lambda x: x[1:]),
    r'table must be \(4, rows, columns\), got \(4, 7\)': replaced(TABLE, lambda x: x[..., 0]),
    r'table must be \(4, rows, columns\), got \(4, 0, 9\)': replaced(TABLE, lambda x: x[:, :0]),
    r'table must be \(4, rows, columns\), got \(4, 7, 0\)': replaced(TABLE, lambda x: x[..., :0]),
    'table must be floating point, got int64': replaced(TABLE, torch.Tensor.long),
    'table must be on .*, got meta': replaced(TABLE, lambda x: x.to('meta')),
    r'query_y and query_x must be \(5,\) and \(2,\), got \(4,\)': replaced(
        QUERY_Y, lambda x: x[:4]
    ),
    r'query_y and query_x must be \(5,\) and \(2,\), got \(5,\) and \(1, 2\)': replaced(
        QUERY_X, lambda x: x[None]
    ),
    'query_x must be float32 or float64, got int64': replaced(QUERY_X, torch.Tensor.long),
    'query_y must be on .*, got meta': replaced(QUERY_Y, lambda x: x.to('meta')),
}
NEIGHBORHOOD = {
    r'only B may be 0; got \(1, 0, 6, 7, 16\)': replaced(Q, lambda x: x[:, :0]),
    'q, k and v must have one shape': replaced(K, lambda x: x[:, :, 1:]),
    'k must be float32, got bfloat16': replaced(K, torch.Tensor.bfloat16),
    'v must be on .*, got meta': replaced(V, lambda x: x.to('meta')),
    r'bias must be \(2, 2 K - 1, 2 K - 1\) with K odd, got \(2, 8, 8\)': replaced(
        BIAS, lambda x: x[:, 1:, 1:]
    ),
    r'bias must be \(2, .*\) with K odd, got \(1, 9, 9\)': replaced(BIAS, lambda x: x[:1]),
    r'bias must be \(2, .*\) with K odd, got \(\)': replaced(BIAS, lambda x: x[0, 0, 0]),
    'bias must be floating point, got .*int64': replaced(BIAS, torch.Tensor.long),
    'bias must be on .*, got meta': replaced(BIAS, lambda x: x.to('meta')),
    'a 4 x 7 map is smaller than the 5 x 5 window': lambda inputs: [
        *(x[:, :, :4] for x in inputs[:3]),
        inputs[3],
    ],
}


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('message', DEFORMABLE)
def test_deformable(message: str, backend: str) -> None:
    make = OPERATORS['deformable'].make
    inputs = make(2, 2, 2, size=(5, 2), samples=6, dim=8)
    with pytest.raises(ValueError, match=message):
        deformable_attention(*DEFORMABLE[message](inputs), backend=backend)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('message', NEIGHBORHOOD)
def test_neighborhood(message: str, backend: str) -> None:
    inputs = OPERATORS['neighborhood'].make(heads=2, size=(6, 7), kernel=5)
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(*NEIGHBORHOOD[message](inputs), backend=backend)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', OPERATORS)
def test_empty_batch(name: str, backend: str) -> None:
    """An empty output; gradients of what has no batch axis are zero."""
    operator: Operator = OPERATORS[name]
    check(operator, operator.make(batch=0), backend)

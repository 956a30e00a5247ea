"""Dilated neighborhood attention: every backend against a brute-force definition."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from operators import CUSTOM, DEVICE, OPERATORS, Inputs, Operator, check
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dat_pp.ops import neighborhood, neighborhood_attention

make = OPERATORS['neighborhood'].make
only_cpu = pytest.mark.skipif(DEVICE != 'cpu', reason='C++ kernels; the tests run on the GPU')
CASES = {
    'equal maps': dict(size=(6, 8), dilation=2),
    'odd sizes': dict(batch=2, heads=2, size=(7, 9), dilation=2),
    'just the window': dict(size=(6, 9), dilation=2),
    'one key': dict(size=(5, 7), kernel=1, dilation=3),
    'one row per map': dict(size=(4, 7), kernel=1, dilation=4),
    'large window': dict(size=(10, 13), kernel=5, dilation=2),
}


def dilated(dilation: int) -> Operator:
    function = partial(neighborhood_attention, dilation=dilation)
    return Operator(function, neighborhood, make, OPERATORS['neighborhood'].differentiable)


def nearest(query: int, length: int, kernel: int, dilation: int) -> list[int]:
    """The K pixels of the query's residue class that are nearest to it, in order."""
    residue_class = [key for key in range(length) if key % dilation == query % dilation]
    return sorted(sorted(residue_class, key=lambda key: abs(key - query))[:kernel])


def brute_force(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """One query after the other, its keys by distance."""
    height, width, dim = q.shape[2:]
    kernel = (bias.shape[-1] + 1) // 2
    out = torch.empty_like(q)
    for y, x in torch.cartesian_prod(torch.arange(height), torch.arange(width)).tolist():
        logits, values = [], []
        for key_y in nearest(y, height, kernel, dilation):
            for key_x in nearest(x, width, kernel, dilation):
                entry = [(key_y - y) // dilation + kernel - 1, (key_x - x) // dilation + kernel - 1]
                product = (q[:, :, y, x] * k[:, :, key_y, key_x]).sum(-1) / dim**0.5
                logits.append(product + bias[:, entry[0], entry[1]])
                values.append(v[:, :, key_y, key_x])
        weights = torch.stack(logits).softmax(0)
        out[:, :, y, x] = (weights[..., None] * torch.stack(values)).sum(0)
    return out


@pytest.mark.parametrize('backend', ['reference', 'blocked'])
@pytest.mark.parametrize('case', CASES)
def test_definition(case: str, backend: str) -> None:
    """Output and gradients in float64."""
    sizes = dict(CASES[case])
    dilation = sizes.pop('dilation')
    found = []
    for function in (brute_force, partial(neighborhood_attention, backend=backend)):
        leaves = [x.double().requires_grad_() for x in make(dim=3, **sizes)]
        out = function(*leaves, dilation=dilation)
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


@only_cpu
@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    batch=st.integers(0, 2),
    heads=st.integers(1, 2),
    beyond=st.tuples(st.integers(0, 11), st.integers(0, 25)),
    kernel=st.sampled_from([1, 3, 5]),
    dilation=st.integers(2, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_native(beyond: tuple[int, int], kernel: int, dilation: int, **case: object) -> None:
    size = (kernel * dilation + beyond[0], kernel * dilation + beyond[1])
    check(dilated(dilation), make(size=size, kernel=kernel, **case), 'native')


@pytest.mark.parametrize('backend', [*CUSTOM, 'blocked'])
def test_backends(backend: str) -> None:
    """Maps of four sizes; on a GPU several heads."""
    heads = 1 if DEVICE == 'cpu' else 3  # the interpreter is slow
    check(dilated(2), make(heads=heads, size=(7, 9), dim=8), backend)


@pytest.mark.slow
@pytest.mark.parametrize('backend', CUSTOM)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    check(dilated(2), make(batch=2, heads=2, size=(7, 8), dtype=dtype), backend)


@pytest.mark.parametrize('backend', [*CUSTOM, 'blocked'])
def test_strides(backend: str) -> None:
    """Inputs that are views, as in a model."""
    plain = make(batch=2, heads=2, size=(6, 7))
    views = [x.mT.contiguous().mT for x in plain]
    assert not any(x.is_contiguous() for x in views)
    outs = [neighborhood_attention(*x, backend=backend, dilation=2) for x in (plain, views)]
    assert torch.equal(*outs)


MESSAGES: dict[str, Callable[[Inputs], dict]] = {
    'a 7 x 11 map is smaller than the 3 x 3 window with dilation 3, which takes 9 pixels per '
    'axis': lambda _: dict(dilation=3),
    'dilation must be at least 1, got 0': lambda _: dict(dilation=0),
}


@pytest.mark.parametrize('message', MESSAGES)
def test_rejected(message: str) -> None:
    inputs = make(size=(7, 11))
    with pytest.raises(ValueError, match=f'{message}$'):
        neighborhood_attention(*inputs, **MESSAGES[message](inputs))


@pytest.mark.parametrize('backend', CUSTOM)
def test_flops(backend: str) -> None:
    """As many as without dilation."""
    inputs = make(heads=2, size=(7, 9), dim=8)
    with FlopCounterMode(display=False) as counter:
        neighborhood_attention(*inputs, backend=backend, dilation=2)
    assert counter.get_total_flops() == 4 * inputs[0].numel() * 3 * 3


class Module(nn.Module):
    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, *inputs: Tensor) -> Tensor:
        return neighborhood_attention(*inputs, backend=self.backend, dilation=2)


@pytest.mark.parametrize('backend', [None, *CUSTOM, 'blocked'])
def test_export(backend: str | None, default_backend: None) -> None:
    """By default the graph holds PyTorch's own operators, also for maps of other sizes."""
    inputs = make(batch=2, size=(7, 9))
    size = None if backend else dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(
        Module(backend), tuple(inputs), dynamic_shapes={'inputs': (size, size, size, None)}
    )
    targets = ' '.join(str(node.target) for node in program.graph.nodes)
    assert (f'dat_pp.{backend}_neighborhood_attention' in targets) == (backend in CUSTOM)
    sizes = [(7, 9)] if backend else [(7, 9), (8, 12), (6, 15)]
    for size in sizes:
        others = [*make(batch=2, size=size, seed=5)[:3], inputs[3]]
        expected = neighborhood_attention(*others, backend=backend, dilation=2)
        torch.testing.assert_close(program.module()(*others), expected)


@pytest.mark.slow
@pytest.mark.parametrize('backend', [CUSTOM[-1], 'blocked', 'reference'])
def test_compile(backend: str) -> None:
    """Forward and backward pass, without a graph break."""
    compiled = torch.compile(Module(backend), fullgraph=True, backend='aot_eager')
    found = []
    for function in (compiled, Module(backend)):
        leaves = [x.requires_grad_() for x in make(heads=2, size=(7, 9))]
        out = function(*leaves)
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)

"""Neighborhood attention in Triton, on CPUs and blocked, against the float64 reference."""

import pytest
import torch
from compare import DEVICE, check, random
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dat_pp.ops import neighborhood_attention
from dat_pp.ops.neighborhood_attention import triton as fused

BACKENDS = ['triton', 'blocked', *(['native'] if DEVICE == 'cpu' else [])]
ALL = range(4)  # q, k, v, bias


@pytest.fixture(params=[name for name in BACKENDS if name != 'blocked'])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def make(
    batch: int = 1,
    heads: int = 1,
    size: tuple[int, int] = (4, 5),
    dim: int = 16,
    kernel: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    """Random q, k, v, bias."""
    side = 2 * kernel - 1
    maps = [random(batch, heads, *size, dim, seed=seed + i, dtype=dtype) for i in range(3)]
    return [*maps, random(heads, side, side, seed=seed + 3)]


@pytest.mark.parametrize('backend', BACKENDS)
@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    batch=st.integers(1, 2),
    beyond=st.tuples(st.integers(0, 6), st.integers(0, 7)),
    dim=st.sampled_from([8, 16, 24, 32]),
    kernel=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_random(backend: str, beyond: tuple[int, int], kernel: int, **case) -> None:
    size = (kernel + beyond[0], kernel + beyond[1])
    check(neighborhood_attention, make(size=size, kernel=kernel, **case), backend, ALL)


@pytest.mark.skipif(DEVICE != 'cpu', reason='the kernels for CPUs; the tests run on the GPU')
@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    beyond=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    dim=st.sampled_from([7, 16, 32, 48, 64]),
    kernel=st.sampled_from([1, 3, 5, 7, 9, 11, 13, 15, 17]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_native_tiles(beyond: tuple[int, int], kernel: int, **case) -> None:
    """Several tiles and bands of rows, every window that fits."""
    size = (kernel + beyond[0], kernel + beyond[1])
    check(neighborhood_attention, make(size=size, kernel=kernel, **case), 'native', ALL)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    """Several images and heads."""
    check(neighborhood_attention, make(2, 2, (4, 6), 32, 3, dtype), backend, ALL)


def test_tiles(backend: str) -> None:
    """Tiles at every border of the map, one in its middle, parts of tiles."""
    check(neighborhood_attention, make(size=(17, 18)), backend, ALL)


@pytest.mark.parametrize('kernel', [5, 7, 13])
def test_large_windows(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == 'cpu':  # one program: the interpreter is slow
        monkeypatch.setitem(fused.__globals__, 'TILE', 16)
    inputs = make(size=(kernel, 15), kernel=kernel)
    check(neighborhood_attention, inputs, 'triton', ALL)


@pytest.mark.parametrize('offset', [0, 1e4, -1e4])
def test_large_logits(backend: str, offset: float) -> None:
    """Logits of thousands, of which float32 keeps three digits after the point."""
    q, k, v, bias = make(size=(5, 5))
    check(neighborhood_attention, [q * 8, k, v, bias + offset], backend, ALL, factor=1000)


def test_strides(backend: str) -> None:
    """Views into one map of queries, keys and values, as the model makes them."""
    maps = random(2, 4, 5, 3, 1, 16, seed=1).permute(3, 0, 4, 1, 2, 5)
    bias = random(1, 5, 5, seed=2).transpose(1, 2)
    outs = []
    for inputs in ([*maps, bias], [t.contiguous() for t in (*maps, bias)]):
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = neighborhood_attention(*leaves, backend=backend)
        weight = random(16, 5, 4, 1, 2, seed=5).permute(4, 3, 2, 1, 0)
        outs.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)


def test_deterministic(backend: str) -> None:
    inputs = [t.requires_grad_() for t in make(2)]
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            torch.autograd.grad(
                neighborhood_attention(*inputs, backend=backend).square().sum(), inputs
            )
            for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_autocast_and_checkpoint(backend: str) -> None:
    """Half-precision queries beside a float32 bias; recomputing changes nothing."""
    leaves = [t.requires_grad_() for t in make()]

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (t @ torch.eye(16, device=DEVICE) for t in (q, k, v))
        return neighborhood_attention(q, k, v, bias, backend=backend)

    gradients = []
    for recompute in (False, True):
        with torch.autocast(DEVICE, torch.bfloat16):
            out = checkpoint(run, *leaves, use_reentrant=False) if recompute else run(*leaves)
        assert out.dtype == torch.bfloat16
        gradients.append(torch.autograd.grad(out.sum(), leaves))
    for a, b in zip(*gradients, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_opcheck(backend: str) -> None:
    inputs = [t.requires_grad_() for t in make(size=(3, 4), dim=8)]
    prefix = '' if backend == 'triton' else f'{backend}_'
    operator = getattr(torch.ops.dat_pp, f'{prefix}neighborhood_attention')
    torch.library.opcheck(operator, inputs)


def test_compile(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, the choice of the backend in it, forward and backward, at two sizes."""
    monkeypatch.setenv('DAT_PP_BACKEND', backend)

    @torch.compile(fullgraph=True, backend='aot_eager', dynamic=True)
    def run(*inputs: Tensor) -> Tensor:
        return neighborhood_attention(*inputs)

    for size in ((3, 4), (5, 3)):
        leaves = [t.requires_grad_() for t in make(size=size)]
        actual = torch.autograd.grad(run(*leaves).square().sum(), leaves)
        out = neighborhood_attention(*leaves, backend='reference')
        expected = torch.autograd.grad(out.square().sum(), leaves)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_export(backend: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return neighborhood_attention(*inputs, backend=backend)

    inputs = make()
    program = torch.export.export(Module(), tuple(inputs))
    operators = [str(node.target) for node in program.graph.nodes]
    assert any(name.endswith('neighborhood_attention.default') for name in operators)
    assert torch.equal(program.module()(*inputs), Module()(*inputs))


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU with 60 GiB of memory')
def test_beyond_int32() -> None:
    """The last of three images, beyond 2^31 elements of q, gets what it gets alone."""
    alone = make(1, 2, (4096, 3072), 32, 3, torch.bfloat16)
    whole = [t.repeat(3, 1, 1, 1, 1).requires_grad_() for t in alone[:3]]
    assert whole[0][:2].numel() < 2**31 < whole[0].numel()
    out = neighborhood_attention(*whole, alone[3], backend='triton')
    grad_out = torch.zeros_like(out)
    grad_out[-1] = 1
    grads = torch.autograd.grad(out, whole, grad_out)
    leaves = [t.requires_grad_() for t in alone[:3]]
    out_alone = neighborhood_attention(*alone, backend='triton')
    expected = torch.autograd.grad(out_alone, leaves, torch.ones_like(out_alone))
    assert torch.equal(out[-1:], out_alone)
    for a, b in zip(grads, expected, strict=True):
        assert torch.equal(a[-1:], b)

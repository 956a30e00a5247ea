"""Deformable attention in Triton, on CPUs and blocked, against the float64 reference."""

import pytest
import torch
from compare import DEVICE, check, random
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dat_pp.ops import deformable_attention
from dat_pp.ops.deformable_attention import triton as fused

BACKENDS = ['triton', 'blocked', *(['native'] if DEVICE == 'cpu' else [])]
ALL = range(5)  # q, k, v, positions, table


@pytest.fixture(params=[name for name in BACKENDS if name != 'blocked'])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def make(
    batch: int = 1,
    groups: int = 1,
    group_heads: int = 1,
    size: tuple[int, int] = (5, 7),
    samples: int = 9,
    dim: int = 16,
    table: tuple[int, int] | None = (7, 9),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor | None]:
    """Random q, k, v, positions, table, query_y, query_x; some positions lie outside [-1, 1]."""
    heads = groups * group_heads
    queries = [
        torch.linspace(-1, 1, n, device=DEVICE) if n > 1 else random(1, seed=0) for n in size
    ]
    return [
        random(batch, heads, *size, dim, seed=seed, dtype=dtype),
        random(batch, heads, samples, dim, seed=seed + 1, dtype=dtype),
        random(batch, heads, samples, dim, seed=seed + 2, dtype=dtype),
        random(batch, groups, samples, 2, seed=seed + 3) * 0.7 + 0.01,
        None if table is None else random(heads, *table, seed=seed + 4),
        *queries,
    ]


odd = st.integers(1, 9).map(lambda n: 2 * n - 1)


@pytest.mark.parametrize('backend', BACKENDS)
@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    planes=st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    samples=st.integers(1, 18),
    dim=st.sampled_from([8, 16, 24, 32]),
    table=st.none() | st.tuples(odd, odd),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_random(backend: str, planes: tuple[int, int, int], **case) -> None:
    check(deformable_attention, make(*planes, **case), backend, ALL)


@pytest.mark.skipif(DEVICE != 'cpu', reason='the kernels for CPUs; the tests run on the GPU')
@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    planes=st.sampled_from([(1, 1, 1), (2, 2, 2), (1, 3, 1), (1, 1, 3)]),
    size=st.tuples(st.integers(1, 70), st.integers(1, 40)),
    samples=st.integers(1, 80),
    dim=st.sampled_from([7, 16, 32, 48, 64]),
    table=st.none() | st.tuples(st.integers(1, 60), st.integers(1, 120)),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_native_tiles(planes: tuple[int, int, int], **case) -> None:
    """Several tiles and blocks of samples; lanes far apart in wide tables, close in narrow ones."""
    check(deformable_attention, make(*planes, **case), 'native', ALL)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    """Blocks beyond the first and part of a block, of queries, samples and table."""
    inputs = make(1, 2, 1, (5, 9), 19, 32, (17, 9), dtype)
    check(deformable_attention, inputs, backend, ALL)


def test_groups(backend: str) -> None:
    """Two heads share the positions of each of two groups, in two images."""
    check(deformable_attention, make(2, 2, 2, (2, 3), samples=3), backend, ALL)


def test_cell_borders(backend: str) -> None:
    """Displacements at exactly whole cells, the table's border and one cell beyond among them."""
    q, k, v, _, _, query_y, query_x = make(size=(5, 3), samples=49)
    steps = torch.arange(-3, 4, device=DEVICE) / 2
    positions = torch.cartesian_prod(steps, steps)[None, None]
    table = random(1, 9, 5, seed=4)
    cells = ((query_y[:, None] - steps) / 2 + 1) * 4
    assert set(range(-1, 10)) <= set(cells.flatten().tolist())
    inputs = [q, k, v, positions, table, query_y, query_x]
    check(deformable_attention, inputs, backend, ALL)


def test_far_outside(backend: str) -> None:
    """Beyond the table the bias is zero, and so are its gradients."""
    inputs = make()
    inputs[3] = inputs[3].sign() * torch.tensor([3.2, 1e6], device=DEVICE)
    check(deformable_attention, inputs, backend, ALL)
    inputs[4].requires_grad_()
    deformable_attention(*inputs, backend=backend).sum().backward()
    assert not inputs[4].grad.any()


@pytest.mark.parametrize('offset', [0, 1e4, -1e4])
def test_large_logits(backend: str, offset: float) -> None:
    """Logits of thousands, of which float32 keeps three digits after the point."""
    inputs = make(size=(3, 4), samples=18)
    inputs[0] = inputs[0] * 8
    inputs[4] = inputs[4] + offset
    inputs[3] = inputs[3].clamp(-1, 1)  # all samples inside the table
    check(deformable_attention, inputs, backend, ALL, factor=1000)


@pytest.mark.filterwarnings('ignore::RuntimeWarning')  # of rows that are computed and dropped
def test_very_negative_logits(backend: str) -> None:
    """The samples that fill up a block have logits of 0, which must not count beside -1000."""
    q, k, *rest = make(samples=18, table=None)
    inputs = [q.abs() * 8, k.abs() * -32, *rest]
    check(deformable_attention, inputs, backend, ALL, factor=100)


def test_many_queries() -> None:
    """So many that the samples' gradients are summed in two shares."""
    check(deformable_attention, make(size=(17, 16), samples=5), 'triton', ALL)


@pytest.mark.parametrize('max_logits', [1, 2 * 4 * 5 * 2, 2 * 4 * 5 * 3])
def test_slabs(max_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's gradient by rows one or two at a time, and by images."""
    monkeypatch.setitem(fused.__globals__, 'MAX_LOGITS', max_logits)
    check(deformable_attention, make(2, 1, 2, (3, 5), samples=4), 'triton', ALL)


@pytest.mark.parametrize('asking', [(0, 1, 2, 3), (4,)])
def test_some_gradients(backend: str, asking: tuple[int, ...]) -> None:
    check(deformable_attention, make(samples=3), backend, asking)


def test_strides(backend: str) -> None:
    """Inputs that are views, as the model makes them, and an output gradient that is one."""
    plain = make(2, 1, 2, (4, 6), samples=3)
    views = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in plain[:5]]
    views += [t.repeat_interleave(2)[::2] for t in plain[5:]]
    assert not any(t.is_contiguous() for t in views)
    outs = []
    for inputs in (plain, views):
        leaves = [t.detach().requires_grad_() for t in inputs[:5]]
        out = deformable_attention(*leaves, *inputs[5:], backend=backend)
        weight = random(16, 6, 4, 2, 2, seed=5).permute(4, 3, 2, 1, 0)
        outs.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)


def test_deterministic(backend: str) -> None:
    inputs = [t.requires_grad_() for t in make(2, samples=6)]
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            torch.autograd.grad(
                deformable_attention(*inputs, backend=backend).square().sum(), inputs[:5]
            )
            for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_autocast_and_checkpoint(backend: str) -> None:
    """Half-precision queries beside a float32 table; recomputing changes nothing."""
    inputs = make()
    leaves = [t.requires_grad_() for t in inputs[:5]]

    def run(*leaves: Tensor) -> Tensor:
        q, k, v = (t @ torch.eye(16, device=DEVICE) for t in leaves[:3])
        return deformable_attention(q, k, v, *leaves[3:], *inputs[5:], backend=backend)

    gradients = []
    for recompute in (False, True):
        with torch.autocast(DEVICE, torch.bfloat16):
            out = checkpoint(run, *leaves, use_reentrant=False) if recompute else run(*leaves)
        assert out.dtype == torch.bfloat16
        gradients.append(torch.autograd.grad(out.sum(), leaves))
    for a, b in zip(*gradients, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize('table', [(3, 5), None])
def test_opcheck(backend: str, table: tuple[int, int] | None) -> None:
    inputs = make(size=(2, 3), samples=3, dim=8, table=table)
    inputs = [t if t is None or i > 4 else t.requires_grad_() for i, t in enumerate(inputs)]
    prefix = '' if backend == 'triton' else f'{backend}_'
    operator = getattr(torch.ops.dat_pp, f'{prefix}deformable_attention')
    torch.library.opcheck(operator, inputs)


def test_compile(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, the choice of the backend in it, forward and backward, at two sizes."""
    monkeypatch.setenv('DAT_PP_BACKEND', backend)

    @torch.compile(fullgraph=True, backend='aot_eager', dynamic=True)
    def run(*inputs: Tensor) -> Tensor:
        return deformable_attention(*inputs)

    for size in ((3, 4), (5, 2)):
        inputs = make(size=size, samples=size[1])
        leaves = [t.requires_grad_() for t in inputs[:5]]
        actual = torch.autograd.grad(run(*inputs).square().sum(), leaves)
        out = deformable_attention(*inputs, backend='reference')
        expected = torch.autograd.grad(out.square().sum(), leaves)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_export(backend: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return deformable_attention(*inputs, backend=backend)

    inputs = make(size=(3, 4))
    program = torch.export.export(Module(), tuple(inputs))
    operators = [str(node.target) for node in program.graph.nodes]
    assert any(name.endswith('deformable_attention.default') for name in operators)
    assert torch.equal(program.module()(*inputs), Module()(*inputs))


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU with 60 GiB of memory')
def test_beyond_int32() -> None:
    """The last of three images, beyond 2^31 elements of q, gets what it gets alone."""
    alone = make(1, 1, 2, (4096, 3072), samples=40, dim=32, dtype=torch.bfloat16)
    whole = [t.repeat(3, *[1] * (t.dim() - 1)) for t in alone[:4]]
    assert whole[0][:2].numel() < 2**31 < whole[0].numel()
    q, positions = (t.requires_grad_() for t in (whole[0], whole[3]))
    out = deformable_attention(*whole, *alone[4:], backend='triton')
    grad_out = torch.zeros_like(out)
    grad_out[-1] = 1
    grads = torch.autograd.grad(out, (q, positions), grad_out)
    leaves = [alone[i].requires_grad_() for i in (0, 3)]
    out_alone = deformable_attention(*alone, backend='triton')
    expected = torch.autograd.grad(out_alone, leaves, torch.ones_like(out_alone))
    assert torch.equal(out[-1:], out_alone)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a[-1:], b, rtol=1e-2, atol=1e-2)

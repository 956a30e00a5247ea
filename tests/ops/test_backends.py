"""Every backend of both operators against the float64 reference."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from operators import CUSTOM, DEVICE, OPERATORS, Operator, check, random
from torch import Tensor
from torch.utils.checkpoint import checkpoint

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
generated = settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
GENERATED_FOR = [
    pytest.param('triton', marks=pytest.mark.slow),  # its interpreter is
    *(name for name in CUSTOM if name != 'triton'),
    'blocked',
]
many_generated = settings(generated, max_examples=30)
odd = st.integers(1, 9).map(lambda n: 2 * n - 1)
deformable, neighborhood = OPERATORS['deformable'], OPERATORS['neighborhood']
only_cpu = pytest.mark.skipif(DEVICE != 'cpu', reason='C++ kernels; the tests run on the GPU')
only_gpu = pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU with 60 GiB of memory')


@pytest.fixture(params=CUSTOM)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize('backend', GENERATED_FOR)
@generated
@given(
    pairs=st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    samples=st.integers(1, 18),
    dim=st.sampled_from([8, 16, 24, 32]),
    table=st.none() | st.tuples(odd, odd),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_random_deformable(backend: str, pairs: tuple[int, int, int], **case: object) -> None:
    check(deformable, deformable.make(*pairs, **case), backend)


@pytest.mark.parametrize('backend', GENERATED_FOR)
@generated
@given(
    batch=st.integers(1, 2),
    beyond=st.tuples(st.integers(0, 6), st.integers(0, 7)),
    dim=st.sampled_from([8, 16, 24, 32]),
    kernel=st.sampled_from([1, 3]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_random_neighborhood(
    backend: str, beyond: tuple[int, int], kernel: int, **case: object
) -> None:
    size = (kernel + beyond[0], kernel + beyond[1])
    check(neighborhood, neighborhood.make(size=size, kernel=kernel, **case), backend)


@only_cpu
@many_generated
@given(
    pairs=st.sampled_from([(1, 1, 1), (2, 2, 2), (1, 3, 1), (1, 1, 3)]),
    size=st.tuples(st.integers(1, 70), st.integers(1, 40)),
    samples=st.integers(1, 80),
    dim=st.sampled_from([7, 16, 32, 48, 64]),
    table=st.none() | st.tuples(st.integers(1, 60), st.integers(1, 120)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_native_deformable(pairs: tuple[int, int, int], **case: object) -> None:
    """Several tiles and blocks of samples; lanes far apart in wide tables, close in narrow ones."""
    check(deformable, deformable.make(*pairs, **case), 'native')


@only_cpu
@many_generated
@given(
    pairs=st.sampled_from([(1, 1), (2, 1), (1, 3)]),
    beyond=st.tuples(st.integers(0, 24), st.integers(0, 24)),
    dim=st.sampled_from([7, 16, 32, 48, 64]),
    kernel=st.sampled_from([1, 3, 5, 7, 9, 11, 13, 15, 17]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_native_neighborhood(
    pairs: tuple[int, int], beyond: tuple[int, int], kernel: int, **case: object
) -> None:
    """Several tiles and bands of rows, every window size that is supported."""
    size = (kernel + beyond[0], kernel + beyond[1])
    check(neighborhood, neighborhood.make(*pairs, size, kernel=kernel, **case), 'native')


SEVERAL_BLOCKS = {
    'deformable': dict(groups=2, size=(5, 9), samples=19, dim=32, table=(17, 9)),
    'neighborhood': dict(batch=2, heads=2, size=(4, 6), dim=32),
}


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', OPERATORS)
def test_dtypes(name: str, backend: str, dtype: torch.dtype) -> None:
    """Blocks beyond the first and partial ones, of queries, samples and table."""
    operator = OPERATORS[name]
    check(operator, operator.make(**SEVERAL_BLOCKS[name], dtype=dtype), backend)


@pytest.mark.parametrize('max_logits', [1, 200])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_block_sizes(
    operator: Operator, dtype: torch.dtype, max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backend ``blocked``, one row of queries or tiles at a time and several."""
    monkeypatch.setattr(operator.package.blocked, 'MAX_LOGITS', max_logits)
    inputs = operator.make(batch=2, size=(17, 9), dim=3, dtype=dtype)
    if dtype == torch.float64:
        inputs[3:] = [x.double() for x in inputs[3:]]
    check(operator, inputs, 'blocked')


@pytest.mark.parametrize('name', ['reference', 'blocked'])
def test_gradcheck(operator: Operator, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator.package.blocked, 'MAX_LOGITS', 40)
    leaves = [
        x.detach().double().requires_grad_(x.requires_grad)
        for x in operator.leaves(size=(5, 3), dim=2)
    ]
    torch.autograd.gradcheck(lambda *args: operator.function(*args, backend=name), leaves)


@pytest.mark.parametrize('offset', [0, 1e4, -1e4])
def test_large_logits(operator: Operator, backend: str, offset: float) -> None:
    """Logits of thousands, of which float32 keeps three decimal places."""
    inputs = operator.make(size=(3, 4))
    inputs[0] = inputs[0] * 8
    if operator is deformable:
        inputs[3] = inputs[3].clamp(-1, 1)  # all samples inside the table
        inputs[4] = inputs[4] + offset
    else:
        inputs[3] = inputs[3] + offset
    check(operator, inputs, backend, factor=1000)


def test_strides(operator: Operator, backend: str) -> None:
    """Inputs that are views, as in the model, and a gradient of the output that is one."""
    plain = operator.make(batch=2, size=(4, 6))
    views = [x.repeat_interleave(2)[::2] if x.dim() == 1 else x.mT.contiguous().mT for x in plain]
    assert not any(x.is_contiguous() for x in views)
    outs = []
    for inputs in (plain, views):
        leaves = [x.detach().requires_grad_() for x in inputs[: operator.differentiable]]
        rest = inputs[operator.differentiable :]
        out = operator.function(*leaves, *rest, backend=backend)
        weight = random(16, 6, 4, 1, 2, seed=5).permute(4, 3, 2, 1, 0)
        outs.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)


def test_deterministic(operator: Operator, backend: str) -> None:
    leaves = operator.leaves(batch=2)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            torch.autograd.grad(
                operator.function(*leaves, backend=backend).square().sum(),
                leaves[: operator.differentiable],
            )
            for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_autocast_and_checkpoint(operator: Operator, backend: str) -> None:
    """Half-precision queries beside a float32 bias; recomputation changes nothing."""
    leaves = operator.leaves()
    wanted = leaves[: operator.differentiable]

    def run(*leaves: Tensor) -> Tensor:
        q, k, v = (x @ torch.eye(16, device=DEVICE) for x in leaves[:3])
        return operator.function(q, k, v, *leaves[3:], backend=backend)

    gradients = []
    for recompute in (False, True):
        with torch.autocast(DEVICE, torch.bfloat16):
            out = checkpoint(run, *leaves, use_reentrant=False) if recompute else run(*leaves)
        assert out.dtype == torch.bfloat16
        gradients.append(torch.autograd.grad(out.sum(), wanted))
    for a, b in zip(*gradients, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize('case', ['deformable', 'without table', 'neighborhood'])
def test_opcheck(case: str, backend: str) -> None:
    name = 'neighborhood' if case == 'neighborhood' else 'deformable'
    kwargs = dict(table=None) if case == 'without table' else {}
    leaves = OPERATORS[name].leaves(size=(3, 4), dim=8, **kwargs)
    torch.library.opcheck(getattr(torch.ops.dat_pp, f'{backend}_{name}_attention'), leaves)


def test_compile(operator: Operator, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, the choice of the backend in it, forward and backward, at two sizes."""
    monkeypatch.setenv('DAT_PP_BACKEND', backend)

    @torch.compile(fullgraph=True, backend='aot_eager', dynamic=True)
    def run(*inputs: Tensor) -> Tensor:
        return operator.function(*inputs)

    for size in ((3, 4), (5, 3)):
        leaves = operator.leaves(size=size)
        wanted = leaves[: operator.differentiable]
        actual = torch.autograd.grad(run(*leaves).square().sum(), wanted)
        out = operator.function(*leaves, backend='reference')
        expected = torch.autograd.grad(out.square().sum(), wanted)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@only_gpu
def test_deformable_beyond_int32() -> None:
    """The last of three images, beyond 2^31 elements of q, gets what it gets alone."""
    alone = deformable.make(1, 1, 2, (4096, 3072), samples=40, dim=32, dtype=torch.bfloat16)
    whole = [x.repeat(3, *[1] * (x.dim() - 1)) for x in alone[:4]]
    assert whole[0][:2].numel() < 2**31 < whole[0].numel()
    q, positions = (x.requires_grad_() for x in (whole[0], whole[3]))
    out = deformable.function(*whole, *alone[4:], backend='triton')
    grad_out = torch.zeros_like(out)
    grad_out[-1] = 1
    grads = torch.autograd.grad(out, (q, positions), grad_out)
    leaves = [alone[i].requires_grad_() for i in (0, 3)]
    out_alone = deformable.function(*alone, backend='triton')
    expected = torch.autograd.grad(out_alone, leaves, torch.ones_like(out_alone))
    assert torch.equal(out[-1:], out_alone)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a[-1:], b, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@only_gpu
def test_neighborhood_beyond_int32() -> None:
    """The last of three images, beyond 2^31 elements of q, gets what it gets alone."""
    alone = neighborhood.make(1, 2, (4096, 3072), 32, 3, torch.bfloat16)
    whole = [x.repeat(3, 1, 1, 1, 1).requires_grad_() for x in alone[:3]]
    assert whole[0][:2].numel() < 2**31 < whole[0].numel()
    out = neighborhood.function(*whole, alone[3], backend='triton')
    grad_out = torch.zeros_like(out)
    grad_out[-1] = 1
    grads = torch.autograd.grad(out, whole, grad_out)
    leaves = [x.requires_grad_() for x in alone[:3]]
    out_alone = neighborhood.function(*alone, backend='triton')
    expected = torch.autograd.grad(out_alone, leaves, torch.ones_like(out_alone))
    assert torch.equal(out[-1:], out_alone)
    for a, b in zip(grads, expected, strict=True):
        assert torch.equal(a[-1:], b)

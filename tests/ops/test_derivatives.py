"""Derivatives beyond one backward pass: a backend that has none gives way or says what to set."""

from collections.abc import Callable

import pytest
import torch
from operators import CUSTOM, Operator
from torch import Tensor
from torch.autograd import forward_ad

ADVICE = 'no torch.func or forward-mode derivatives; set DAT_PP_BACKEND=reference'
pytestmark = pytest.mark.usefixtures('default_backend')


def of_queries(operator: Operator, backend: str | None) -> tuple[Callable, Tensor]:
    """The operator as a function of q alone, and q."""
    q, *rest = operator.make(size=(3, 4), dim=8)
    return lambda q: operator.function(q, *rest, backend=backend), q


def forward_mode(function: Callable, q: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(q, q.sin()))).tangent


TRANSFORMS = {
    'grad': lambda f, q: torch.func.grad(lambda q: f(q).square().sum())(q),
    'vjp': lambda f, q: torch.func.vjp(f, q)[1](q.sin())[0],
    'jvp': lambda f, q: torch.func.jvp(f, (q,), (q.sin(),))[1],
    'jacrev': lambda f, q: torch.func.jacrev(lambda q: f(q).sum((0, 1, 2, 3)))(q),
    'jacfwd': lambda f, q: torch.func.jacfwd(lambda x: f(q + x))(q.new_zeros(())),
    'hessian': lambda f, q: torch.func.hessian(lambda x: f(q * x).sum())(q.new_ones(())),
    'vmap of grad': lambda f, q: torch.func.vmap(torch.func.grad(lambda q: f(q).sum()))(
        torch.stack([q, -q])
    ),
    'forward mode': forward_mode,
}


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_default_gives_way(operator: Operator, transform: str) -> None:
    run = TRANSFORMS[transform]
    actual, expected = (run(*of_queries(operator, name)) for name in (None, 'reference'))
    assert expected.any()
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize('backend', CUSTOM)
@pytest.mark.parametrize('transform', TRANSFORMS)
def test_forced_says_what_to_set(operator: Operator, transform: str, backend: str) -> None:
    with pytest.raises(ValueError, match=f"backend is '{backend}', .* {ADVICE}"):
        TRANSFORMS[transform](*of_queries(operator, backend))


@pytest.mark.filterwarnings('ignore:There is a performance drop:UserWarning')
@pytest.mark.parametrize('backend', [*CUSTOM, None])
def test_vmap(operator: Operator, backend: str | None) -> None:
    """Without derivatives torch.func.vmap runs every backend."""
    function, q = of_queries(operator, backend)
    batches = torch.stack([q, q.sin()])
    actual = torch.func.vmap(function)(batches)
    torch.testing.assert_close(actual, torch.stack([function(q) for q in batches]))


@pytest.mark.parametrize('backend', [*CUSTOM, None, 'blocked'])
def test_second_derivatives(
    operator: Operator, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient penalty on all inputs, of which k depends on q."""
    monkeypatch.setattr(operator.package.blocked, 'MAX_LOGITS', 40)
    found = []
    for name in (backend, 'reference'):
        leaves = operator.leaves(size=(4, 5), dim=8)
        leaves[1] = leaves[1] * leaves[0].mean()
        wanted = [leaves[0], *leaves[2 : operator.differentiable]]
        out = operator.function(*leaves, backend=name)
        first = torch.autograd.grad(out.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), wanted)
        found.append([*first, *second])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradgradcheck(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backend ``blocked`` with recomputation, through which second derivatives go."""
    monkeypatch.setattr(operator.package.blocked, 'MAX_LOGITS', 8)
    small = dict(samples=2, table=(3, 3)) if operator.differentiable == 5 else {}
    leaves = [
        x.detach().double().requires_grad_(i < 3)
        for i, x in enumerate(operator.make(size=(3, 3), dim=1, **small))
    ]
    torch.autograd.gradgradcheck(lambda *x: operator.function(*x, backend='blocked'), leaves)


@pytest.mark.slow
@pytest.mark.parametrize('transform', ['grad', 'jvp'])
def test_compiled_transform(operator: Operator, transform: str) -> None:
    """The choice is made while torch.compile traces torch.func."""
    function, q = of_queries(operator, None)
    compiled = torch.compile(
        lambda q: TRANSFORMS[transform](function, q), fullgraph=True, backend='aot_eager'
    )
    expected = TRANSFORMS[transform](of_queries(operator, 'reference')[0], q)
    torch.testing.assert_close(compiled(q), expected)

"""Backends against the float64 reference: the same inputs, one backward pass, one tolerance."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}
"""Largest error, relative to the largest value. Triton's interpreter truncates to bfloat16."""


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values, representable in float16 and bfloat16 too: what differs is the arithmetic."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).bfloat16()
    return values.to(DEVICE, dtype)


def results(
    function: Callable, inputs: Sequence[Tensor | None], backend: str, asking: Sequence[int]
) -> dict[str, Tensor]:
    """Output, and the gradients of the inputs ``asking``; zeros where nothing depends on one."""
    leaves = [
        None if t is None else t.detach().requires_grad_(i in asking) for i, t in enumerate(inputs)
    ]
    out = function(*leaves, backend=backend)
    out.backward(random(*out.shape, seed=99, dtype=out.dtype))
    found = {'output': out.detach()}
    for i in asking:
        if leaves[i] is not None:
            grad = leaves[i].grad
            found[f'gradient {i}'] = torch.zeros_like(leaves[i]) if grad is None else grad
    return found


def check(
    function: Callable,
    inputs: Sequence[Tensor | None],
    backend: str,
    asking: Sequence[int],
    factor: float = 1,
) -> None:
    """Assert that the output and the gradients of inputs ``asking`` are the float64 reference's.

    Args:
        function: The operator.
        inputs: Its inputs; the first is q, whose dtype decides the tolerance.
        backend: The backend to check.
        asking: Indices of the inputs that get a gradient; those that are None get none.
        factor: Times the tolerance.
    """
    actual = results(function, inputs, backend, asking)
    exact = [None if t is None else t.double() for t in inputs]
    expected = results(function, exact, 'reference', asking)
    tolerance = factor * TOLERANCE[inputs[0].dtype]
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        like = inputs[0] if name == 'output' else inputs[int(name.split()[1])]
        assert value.dtype == like.dtype, name
        error = (value.double() - expected[name]).abs().max().item()
        assert error <= tolerance * max(expected[name].abs().max().item(), 1e-3), name

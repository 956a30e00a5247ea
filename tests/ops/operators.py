"""Both operators with small random inputs, and the comparison of a backend with the reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from dat_pp import ops
from dat_pp.ops import deformable, neighborhood

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}
"""Largest error relative to the largest value. Triton's interpreter truncates to bfloat16."""
Inputs = list[Tensor | None]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values representable in float16 and bfloat16: only the arithmetic differs."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).bfloat16()
    return values.to(DEVICE, dtype)


def deformable_inputs(
    batch: int = 1,
    groups: int = 1,
    group_heads: int = 1,
    size: tuple[int, int] = (5, 7),
    samples: int = 9,
    dim: int = 16,
    table: tuple[int, int] | None = (7, 9),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """q, k, v, positions, table, query_y and query_x; some positions lie outside [-1, 1]."""
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


def neighborhood_inputs(
    batch: int = 1,
    heads: int = 1,
    size: tuple[int, int] = (4, 5),
    dim: int = 16,
    kernel: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """q, k, v and bias."""
    side = 2 * kernel - 1
    maps = [random(batch, heads, *size, dim, seed=seed + i, dtype=dtype) for i in range(3)]
    return [*maps, random(heads, side, side, seed=seed + 3)]


@dataclass(frozen=True)
class Operator:
    """An operator, its package, and a maker of inputs of which the first have gradients."""

    function: Callable[..., Tensor]
    package: ModuleType
    make: Callable[..., Inputs]
    differentiable: int

    def leaves(self, **kwargs: object) -> Inputs:
        """Inputs of which all differentiable ones ask for a gradient."""
        inputs = self.make(**kwargs)
        return [
            x.requires_grad_() if x is not None and i < self.differentiable else x
            for i, x in enumerate(inputs)
        ]


OPERATORS = {
    'deformable': Operator(ops.deformable_attention, deformable, deformable_inputs, 5),
    'neighborhood': Operator(ops.neighborhood_attention, neighborhood, neighborhood_inputs, 4),
}
CUSTOM = ('triton', 'native') if DEVICE == 'cpu' else ('triton',)
"""Backends that are custom operators and can be tested here."""


def results(
    function: Callable, inputs: Sequence[Tensor | None], backend: str, asking: Sequence[int]
) -> dict[str, Tensor]:
    """Output and gradients of the inputs ``asking``; zeros where nothing depends on one."""
    leaves = [
        None if x is None else x.detach().requires_grad_(i in asking) for i, x in enumerate(inputs)
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
    operator: Operator,
    inputs: Sequence[Tensor | None],
    backend: str,
    asking: Sequence[int] | None = None,
    factor: float = 1,
) -> None:
    """Assert that output and gradients are those of the float64 reference.

    Args:
        operator: The operator.
        inputs: Its inputs; the dtype of q, the first one, decides the tolerance.
        backend: The backend to check.
        asking: Indices of the inputs that ask for a gradient; default: all differentiable ones.
        factor: Multiplies the tolerance.
    """
    asking = range(operator.differentiable) if asking is None else asking
    actual = results(operator.function, inputs, backend, asking)
    exact = [None if x is None else x.double() for x in inputs]
    expected = results(operator.function, exact, 'reference', asking)
    tolerance = factor * TOLERANCE[inputs[0].dtype]
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        like = inputs[0] if name == 'output' else inputs[int(name.split()[1])]
        assert value.dtype == like.dtype, name
        scale = max(expected[name].abs().max().item(), 1e-3) if value.numel() else 1
        error = (value.double() - expected[name]).abs().max().item() if value.numel() else 0
        assert error <= tolerance * scale, name

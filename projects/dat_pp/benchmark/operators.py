"""The operators that can be measured, and the matrix product that the machine is judged by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.arch import NUM_STAGES, resolve_arch
from ..ops import deformable_attention, neighborhood_attention
from .cases import HEAD_SIZE, MACS_OF_MODE, SDPA, Setting, Size, in_pass
from .measure import Case

ARCH = 'dat-t++'
"""Operators run on the shapes that they have in this model."""
MATRIX_PRODUCT = 'matrix product'
MATRIX_SIZE = {'cpu': 1024, 'cuda': 8192}


@dataclass(frozen=True)
class Shapes:
    """Shapes of the operators' inputs in one stage."""

    stage: int
    mixers: str
    map: tuple[int, int]
    heads: int
    groups: int
    samples: int
    native: tuple[int, int]
    kernel: int


def stage_shapes(size: Size) -> list[Shapes]:
    """The shapes of the operators' inputs in each stage of ``ARCH``."""
    arch = resolve_arch(ARCH)
    shapes = []
    for i in range(NUM_STAGES):
        patch = 4 * 2**i
        sides = -(-size.height // patch), -(-size.width // patch)
        # The offset network's padding is half its odd kernel.
        samples = [(side - 1) // arch.offset_strides[i] + 1 for side in sides]
        shapes.append(
            Shapes(
                stage=i + 1,
                mixers=arch.mixers[i],
                map=sides,
                heads=arch.num_heads[i],
                groups=arch.offset_groups[i],
                samples=samples[0] * samples[1],
                native=tuple(-(-side // patch) for side in arch.native_resolution),
                kernel=arch.neighborhood_kernel_size[i],
            )
        )
    return shapes


def operators_in(names: Sequence[str], shapes: Shapes) -> list[str]:
    """Return those of ``names`` that the stage uses."""
    return [name for name in names if 'N' in shapes.mixers or not name.startswith('neighborhood')]


def operator_cases(
    names: Sequence[str], size: Size, shapes: Shapes, mode: str, setting: Setting
) -> list[Case]:
    """Cases of the operators ``names`` in a pass ``mode`` over the maps of one stage."""
    cases = []
    for name in operators_in(names, shapes):
        operator, _, backend = name.partition(':')
        make = _neighborhood if operator == 'neighborhood_attention' else _deformable
        inputs, macs = make(size.batch, shapes, setting)
        call = _call(operator, inputs, shapes, setting)
        for tensor in inputs:
            tensor.requires_grad_(mode == 'train')
        cases.append(
            Case(
                name,
                in_pass(call, setting, mode, backend),
                macs * MACS_OF_MODE[mode],
                clear=partial(_clear_gradients, inputs),
            )
        )
    return cases


def _clear_gradients(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        tensor.grad = None


def _random(setting: Setting, *shape: int) -> Tensor:
    return torch.randn(*shape, device=setting.device, dtype=setting.dtype)


def _deformable(batch: int, shapes: Shapes, setting: Setting) -> tuple[list[Tensor], int]:
    """Inputs of deformable attention (q, k, v, positions, table), and forward MACs."""
    torch.manual_seed(0)
    q = _random(setting, batch, shapes.heads, *shapes.map, HEAD_SIZE)
    k = _random(setting, batch, shapes.heads, shapes.samples, HEAD_SIZE)
    positions = torch.rand(batch, shapes.groups, shapes.samples, 2, device=setting.device) * 2 - 1
    table = torch.randn(shapes.heads, *(2 * n - 1 for n in shapes.native), device=setting.device)
    return [q, k, torch.randn_like(k), positions, table], 2 * q.numel() * shapes.samples


def _neighborhood(batch: int, shapes: Shapes, setting: Setting) -> tuple[list[Tensor], int]:
    """Inputs of neighborhood attention (q, k, v, table), and forward MACs."""
    torch.manual_seed(0)
    # The mixer pads maps that are smaller than the window.
    sides = (max(side, shapes.kernel) for side in shapes.map)
    q = _random(setting, batch, shapes.heads, *sides, HEAD_SIZE)
    table = torch.randn(shapes.heads, *[2 * shapes.kernel - 1] * 2, device=setting.device)
    inputs = [q, torch.randn_like(q), torch.randn_like(q), table]
    return inputs, 2 * q.numel() * shapes.kernel**2


def _call(
    operator: str, inputs: list[Tensor], shapes: Shapes, setting: Setting
) -> Callable[[], Tensor]:
    if operator == 'neighborhood_attention':
        q, k, v, table = inputs
        return lambda: neighborhood_attention(q, k, v, table)
    q, k, v, positions, table = inputs
    if operator == SDPA:
        return lambda: F.scaled_dot_product_attention(q.flatten(2, 3), k, v)
    y, x = (torch.linspace(-1, 1, side, device=setting.device) for side in shapes.map)
    return lambda: deformable_attention(q, k, v, positions, table, y, x)


def matrix_product(setting: Setting) -> Case:
    """A square matrix product; its rate is what the machine reaches in MACs per second."""
    size = MATRIX_SIZE[setting.device.type]
    a, b, out = (_random(setting, size, size) for _ in range(3))

    def run() -> None:
        with torch.no_grad():
            torch.mm(a, b, out=out)

    return Case(MATRIX_PRODUCT, run, size**3)

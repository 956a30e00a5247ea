"""What can be measured: our models, two of mmpretrain's, and single operators."""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.config import LIBRARIES
from ..engine.errors import UserError
from ..engine.flops import META, PRODUCTS, count
from ..models import DAT
from ..models.arch import ARCH_SETTINGS, NUM_STAGES, resolve_arch
from ..ops import deformable_attention, neighborhood_attention
from ..ops.deformable import BACKENDS
from ..ops.dispatch import ENVIRONMENT_VARIABLE
from .measure import Contestant

OTHER_MODELS = ('swin-t', 'convnext-t')
MODELS = (*ARCH_SETTINGS, *OTHER_MODELS)
FUSED = 'scaled_dot_product_attention'
OUR_OPERATORS = ('deformable_attention', 'neighborhood_attention')
OPERATORS = (*OUR_OPERATORS, FUSED)
OPERATOR_ARCH = 'dat-t++'
"""Operators run on the shapes of this model."""
HEAD_SIZE = 32
MATRIX_PRODUCT = 'matrix product'
MATRIX_SIZE = {'cpu': 1024, 'cuda': 8192}
PASSES = ('forward', 'train')
PRODUCTS_OF_PASS = {'forward': 1, 'train': 3}
"""The backward pass has two matrix products for every one of the forward pass."""


@dataclass(frozen=True)
class Setting:
    """Where and how everything runs."""

    device: torch.device
    amp: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes into matrix products."""
        return torch.get_autocast_dtype(self.device.type) if self.amp else torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, enabled=self.amp)


@dataclass(frozen=True)
class Size:
    """A batch of images."""

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f'{self.batch} x {self.height} x {self.width}'


@dataclass(frozen=True)
class Shapes:
    """What the operators of one stage see."""

    stage: int
    mixers: str
    map: tuple[int, int]
    heads: int
    groups: int
    samples: int
    native: tuple[int, int]
    kernel: int


def check_model(name: str, setting: Setting) -> None:
    """Raise a UserError unless ``NAME`` or ``NAME:BACKEND`` can run."""
    _check('--models', name, MODELS, OTHER_MODELS, setting)
    if name in OTHER_MODELS and importlib.util.find_spec('mmpretrain') is None:
        raise UserError(
            f"--models: {name} needs 'mmpretrain', which is not installed: "
            f'pip install --no-build-isolation {LIBRARIES["mmpretrain"]}'
        )


def check_operator(name: str, setting: Setting) -> None:
    """Raise a UserError unless ``NAME`` or ``NAME:BACKEND`` can run."""
    _check('--operators', name, OPERATORS, (FUSED,), setting)


def _check(
    option: str, name: str, names: Sequence[str], others: Sequence[str], setting: Setting
) -> None:
    base, colon, backend = name.partition(':')
    if base not in names:
        raise UserError(f'{option}: unknown {base!r}; choose one of {", ".join(names)}')
    if not colon:
        return
    if base in others:
        raise UserError(f'{option}: {base} has no backends; got {name!r}')
    if backend not in BACKENDS:
        choices = ', '.join(sorted(BACKENDS))
        raise UserError(
            f'{option}: unknown backend {backend!r} in {name!r}; choose one of {choices}'
        )
    heads = torch.empty(HEAD_SIZE, dtype=setting.dtype, device=setting.device)
    reason = BACKENDS[backend].unsupported_reason(heads, heads, heads, 0.0)
    if reason:
        raise UserError(f'{option}: {name!r} cannot run: {reason}')


@contextlib.contextmanager
def forced(backend: str) -> Iterator[None]:
    """Have our operators use this backend; the empty one is what they choose themselves."""
    before = os.environ.pop(ENVIRONMENT_VARIABLE, None)
    if backend:
        os.environ[ENVIRONMENT_VARIABLE] = backend
    try:
        yield
    finally:
        os.environ.pop(ENVIRONMENT_VARIABLE, None)
        if before is not None:
            os.environ[ENVIRONMENT_VARIABLE] = before


class Models:
    """Makes each model once, in all its uses."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.built: dict[str, nn.Module] = {}
        self.products: dict[tuple, int | None] = {}

    def contestants(self, names: Sequence[str], size: Size, kind: str) -> list[Contestant]:
        """The models ``names`` in a pass ``kind`` over one batch."""
        torch.manual_seed(0)
        image = torch.randn(size.batch, 3, size.height, size.width, device=self.setting.device)
        return [self.contestant(name, image, kind) for name in names]

    def contestant(self, name: str, image: Tensor, kind: str) -> Contestant:
        arch, _, backend = name.partition(':')
        if arch not in self.built:
            self.built[arch] = build_model(arch).to(self.setting.device)
        model = self.built[arch]
        model.train(kind == 'train')  # Swin's returns None
        key = (arch, image.shape)
        if key not in self.products:
            self.products[key] = count_products(model, image)
        products = self.products[key]
        return Contestant(
            name,
            in_pass(lambda: model(image), self.setting, kind, backend),
            products and products * PRODUCTS_OF_PASS[kind],
            clear=lambda: model.zero_grad(set_to_none=True),
        )


def build_model(name: str) -> nn.Module:
    """A backbone that returns the maps of all four stages, without stochastic depth."""
    if name in ARCH_SETTINGS:
        return DAT(name)
    from mmpretrain.models import ConvNeXt, SwinTransformer

    stages = tuple(range(NUM_STAGES))
    if name == 'swin-t':
        return SwinTransformer('tiny', out_indices=stages, drop_path_rate=0.0, pad_small_map=True)
    return ConvNeXt('tiny', out_indices=stages, drop_path_rate=0.0, gap_before_final_norm=False)


def count_products(model: nn.Module, image: Tensor) -> int | None:
    """Multiply-adds of a forward pass in matrix products and convolutions; None if it cannot run
    without data, or not at all: that will show when it is run.
    """
    on_meta = deepcopy(model).to(META)
    one = torch.empty(1, *image.shape[1:], device=META)
    try:
        return len(image) * sum(count(lambda: on_meta(one), operators=PRODUCTS).values())
    except Exception:
        return None


def in_pass(
    call: Callable[[], Tensor | tuple[Tensor, ...]], setting: Setting, kind: str, backend: str
) -> Callable[[], None]:
    """``call`` as a forward pass, or as a training step on a plain loss."""

    def forward() -> None:
        with forced(backend), torch.no_grad(), setting.autocast():
            call()

    def train() -> None:
        with forced(backend):
            with setting.autocast():
                outs = call()
                outs = (outs,) if isinstance(outs, Tensor) else outs
                loss = sum(out.float().square().mean() for out in outs)
            loss.backward()

    return {'forward': forward, 'train': train}[kind]


def stage_shapes(size: Size) -> list[Shapes]:
    """What the operators see in each stage of the model ``OPERATOR_ARCH``."""
    arch = resolve_arch(OPERATOR_ARCH)
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
    """Those of ``names`` that the stage uses."""
    return [name for name in names if 'N' in shapes.mixers or not name.startswith('neighborhood')]


def operator_contestants(
    names: Sequence[str], size: Size, shapes: Shapes, kind: str, setting: Setting
) -> list[Contestant]:
    """The operators ``names`` in a pass over the maps of one stage."""
    contestants = []
    for name in operators_in(names, shapes):
        operator, _, backend = name.partition(':')
        make = _neighborhood if operator == 'neighborhood_attention' else _deformable
        inputs, products = make(size.batch, shapes, setting)
        call = _calls(inputs, shapes, setting)[operator]
        for tensor in inputs:
            tensor.requires_grad_(kind == 'train')
        contestants.append(
            Contestant(
                name,
                in_pass(call, setting, kind, backend),
                products * PRODUCTS_OF_PASS[kind],
                clear=lambda inputs=inputs: [setattr(tensor, 'grad', None) for tensor in inputs],
            )
        )
    return contestants


def _random(setting: Setting, *shape: int) -> Tensor:
    return torch.randn(*shape, device=setting.device, dtype=setting.dtype)


def _deformable(batch: int, shapes: Shapes, setting: Setting) -> tuple[list[Tensor], int]:
    """Queries, keys, values, positions and table; the multiply-adds."""
    torch.manual_seed(0)
    q = _random(setting, batch, shapes.heads, *shapes.map, HEAD_SIZE)
    k = _random(setting, batch, shapes.heads, shapes.samples, HEAD_SIZE)
    positions = torch.rand(batch, shapes.groups, shapes.samples, 2, device=setting.device) * 2 - 1
    table = torch.randn(shapes.heads, *(2 * n - 1 for n in shapes.native), device=setting.device)
    return [q, k, torch.randn_like(k), positions, table], 2 * q.numel() * shapes.samples


def _neighborhood(batch: int, shapes: Shapes, setting: Setting) -> tuple[list[Tensor], int]:
    """Queries, keys, values and table; the multiply-adds."""
    torch.manual_seed(0)
    # The mixer pads maps that are smaller than the window.
    sides = (max(side, shapes.kernel) for side in shapes.map)
    q = _random(setting, batch, shapes.heads, *sides, HEAD_SIZE)
    table = torch.randn(shapes.heads, *[2 * shapes.kernel - 1] * 2, device=setting.device)
    inputs = [q, torch.randn_like(q), torch.randn_like(q), table]
    return inputs, 2 * q.numel() * shapes.kernel**2


def _calls(
    inputs: list[Tensor], shapes: Shapes, setting: Setting
) -> dict[str, Callable[[], Tensor]]:
    axes = [torch.linspace(-1, 1, side, device=setting.device) for side in shapes.map]
    return {
        'deformable_attention': lambda: deformable_attention(*inputs, *axes),
        'neighborhood_attention': lambda: neighborhood_attention(*inputs),
        FUSED: lambda: F.scaled_dot_product_attention(inputs[0].flatten(2, 3), *inputs[1:3]),
    }


def matrix_product(setting: Setting) -> Contestant:
    """A square matrix product: its rate is that of the machine's multiply-adds."""
    size = MATRIX_SIZE[setting.device.type]
    a, b, out = (_random(setting, size, size) for _ in range(3))

    def run() -> None:
        with torch.no_grad():
            torch.mm(a, b, out=out)

    return Contestant(MATRIX_PRODUCT, run, size**3)

"""The models that can be measured: ours, and two baselines of mmpretrain."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engine.config import LIBRARIES
from ..engine.errors import UserError
from ..engine.flops import MATMULS, META, count
from ..models import DAT
from ..models.arch import ARCH_SETTINGS, NUM_STAGES
from ..ops import use_backend
from ..ops.deformable import BACKENDS
from .measure import Case

BASELINES = ('swin-t', 'convnext-t')
MODELS = (*ARCH_SETTINGS, *BASELINES)
SDPA = 'scaled_dot_product_attention'
OUR_OPERATORS = ('deformable_attention', 'neighborhood_attention')
OPERATORS = (*OUR_OPERATORS, SDPA)
HEAD_SIZE = 32
PASSES = ('forward', 'train')
MACS_OF_MODE = {'forward': 1, 'train': 3}
"""The backward pass has two matrix products for each one of the forward pass."""


@dataclass(frozen=True)
class Setting:
    """Device and precision of a benchmark."""

    device: torch.device
    amp: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the operands of matrix products."""
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


def check_model(name: str, setting: Setting) -> None:
    """Raise a UserError unless ``NAME`` or ``NAME:BACKEND`` can run."""
    _check('--models', name, MODELS, BASELINES, setting)
    if name in BASELINES and importlib.util.find_spec('mmpretrain') is None:
        raise UserError(
            f"--models: {name} needs 'mmpretrain', which is not installed: "
            f'pip install --no-build-isolation {LIBRARIES["mmpretrain"]}'
        )


def check_operator(name: str, setting: Setting) -> None:
    """Raise a UserError unless ``NAME`` or ``NAME:BACKEND`` can run."""
    _check('--operators', name, OPERATORS, (SDPA,), setting)


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


class Models:
    """Builds each model once and makes the cases that run it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.built: dict[str, nn.Module] = {}
        self.macs: dict[tuple, int | None] = {}

    def cases(self, names: Sequence[str], size: Size, mode: str) -> list[Case]:
        """Cases of the models ``names`` in a pass ``mode`` over one batch."""
        torch.manual_seed(0)
        image = torch.randn(size.batch, 3, size.height, size.width, device=self.setting.device)
        return [self.case(name, image, mode) for name in names]

    def case(self, name: str, image: Tensor, mode: str) -> Case:
        arch, _, backend = name.partition(':')
        if arch not in self.built:
            self.built[arch] = build_model(arch).to(self.setting.device)
        model = self.built[arch]
        model.train(mode == 'train')  # Swin's returns None
        key = (arch, image.shape)
        if key not in self.macs:
            self.macs[key] = count_macs(model, image)
        macs = self.macs[key]
        return Case(
            name,
            in_pass(lambda: model(image), self.setting, mode, backend),
            macs and macs * MACS_OF_MODE[mode],
            clear=lambda: model.zero_grad(set_to_none=True),
        )


def build_model(name: str) -> nn.Module:
    """Build a backbone that returns the maps of all four stages, without stochastic depth."""
    if name in ARCH_SETTINGS:
        return DAT(name)
    from mmpretrain.models import ConvNeXt, SwinTransformer

    stages = tuple(range(NUM_STAGES))
    if name == 'swin-t':
        return SwinTransformer('tiny', out_indices=stages, drop_path_rate=0.0, pad_small_map=True)
    return ConvNeXt('tiny', out_indices=stages, drop_path_rate=0.0, gap_before_final_norm=False)


def count_macs(model: nn.Module, image: Tensor) -> int | None:
    """Count the MACs of matrix products and convolutions in a forward pass.

    Returns:
        None if the model cannot run without data, or not at all, which running it will show.
    """
    on_meta = deepcopy(model).to(META)
    one = torch.empty(1, *image.shape[1:], device=META)
    try:
        return len(image) * sum(count(lambda: on_meta(one), operators=MATMULS).values())
    except Exception:
        return None


def in_pass(
    call: Callable[[], Tensor | tuple[Tensor, ...]], setting: Setting, mode: str, backend: str
) -> Callable[[], None]:
    """Make ``call`` a forward pass, or a training step with a plain loss."""

    def forward() -> None:
        with use_backend(backend), torch.no_grad(), setting.autocast():
            call()

    def train() -> None:
        with use_backend(backend):
            with setting.autocast():
                outs = call()
                outs = (outs,) if isinstance(outs, Tensor) else outs
                losses = [out.float().square().mean() for out in outs]
                loss = functools.reduce(torch.add, losses)
            loss.backward()

    return {'forward': forward, 'train': train}[mode]

"""Parameters and FLOPs of a config's model.

    python tools/analysis_tools/get_flops.py CONFIG [--shape H [W]] [--cfg-options KEY=VALUE ...]

FLOPs are MACs (multiply-accumulates), as in MMLab, counted by the rules of mmengine's FlopAnalyzer
on the reference implementation of every operator. Only shapes are computed, on the meta device.
Without --shape: a classifier's test size, 800 x 1280 for detectors, 512 x 2048 for segmentors.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..ops import use_backend
from .config import LIBRARIES, config_parser, read_config
from .errors import UserError, user_errors
from .noise import silence
from .preflight import check_model

PARTS = ('backbone', 'neck', 'heads')
SHAPES = {'mmdet': (800, 1280), 'mmseg': (512, 2048)}
BOX_ROIS, MASK_ROIS = 1000, 100  # as mmdet 2.x counted, and papers since
CPU, META = torch.device('cpu'), torch.device('meta')

COUNTED = """\
FLOPs: MACs per image of convolutions, matrix products, norms, pooling, interpolation and sampling,
without post-processing."""
COUNTED_ROIS = f"""\
Box heads run on {BOX_ROIS} RoIs, mask heads on {MASK_ROIS}, without RoIAlign and NMS."""
COUNTED_AUXILIARY = (
    'Auxiliary heads count towards parameters only: they are not used after training.'
)


@dataclass(frozen=True)
class Complexity:
    """Parameters and FLOPs of a model, for each of ``PARTS``."""

    shape: tuple[int, int]
    params: dict[str, int]
    flops: dict[str, int]
    notes: tuple[str, ...]

    @property
    def total_params(self) -> int:
        return sum(self.params.values())

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())


def default_shape(cfg: Config) -> tuple[int, int]:
    """Return height and width at which models of the config's task are compared.

    Raises:
        UserError: It is a classifier whose test pipeline states no size.
    """
    if cfg.default_scope in SHAPES:
        return SHAPES[cfg.default_scope]
    pipeline = ((cfg.get('test_dataloader') or {}).get('dataset') or {}).get('pipeline') or []
    for step in reversed(pipeline):
        size = step.get('crop_size') or (step.get('scale') if step['type'] == 'Resize' else None)
        if size:  # mmcv says width, height
            return (size, size) if isinstance(size, int) else (size[1], size[0])
    raise UserError(f'config {cfg.filename}: no image size in test_dataloader; give --shape')


def measure(cfg: Config, shape: Sequence[int] | None = None) -> Complexity:
    """Count parameters and FLOPs of a config's model.

    Args:
        cfg: The config, as :func:`.config.read_config` reads it.
        shape: Height and width of the image. Default: :func:`default_shape`.

    Raises:
        UserError: The config has no model that can be counted, or it cannot run at this shape.
    """
    if cfg.get('default_scope') not in LIBRARIES or not cfg.get('model'):
        raise UserError(f'config {cfg.filename}: not a classifier, detector or segmentor')
    shape = tuple(shape) if shape else default_shape(cfg)
    size = ' x '.join(map(str, shape))
    if len(shape) != 2 or min(shape) < 1:
        raise UserError(f'--shape: give a height and a width of at least 1, not {size}')
    model = _build(cfg)
    image = torch.empty(1, 3, *shape, device=META)
    parts = {name: getattr(model, name, None) for name in PARTS[:2]}
    with user_errors(f'config {cfg.filename}: cannot run at {size}'):
        flops = count(lambda: _Inference(model, cfg.default_scope)(image), parts)
    notes = [COUNTED]
    if hasattr(model, 'roi_head'):
        notes.append(COUNTED_ROIS)
    if getattr(model, 'auxiliary_head', None) is not None:
        notes.append(COUNTED_AUXILIARY)
    return Complexity(shape, _count_params(model), flops, tuple(notes))


def count(
    run: Callable[[], Any],
    parts: Mapping[str, nn.Module | None] | None = None,
    operators: Sequence[Any] | None = None,
) -> dict[str, int]:
    """Count the MACs of what ``run`` does on the meta device, without gradients.

    Args:
        run: Calls a model that is on the meta device, as are its inputs.
        parts: The modules to count as one of ``PARTS``; the rest is 'heads'.
        operators: The operators to count. Default: all of ``COUNTS``.

    Returns:
        MACs for each of ``PARTS``.
    """
    counter = _Counter(parts or {}, operators or tuple(COUNTS))
    with (
        silence(),
        # Faster backends hide their arithmetic in one operator, or do more of it.
        use_backend('reference'),
        torch.no_grad(),
        counter,
        _SayCPU(),
    ):
        run()
    return counter.flops


def _build(cfg: Config) -> nn.Module:
    with silence():
        init_default_scope(cfg.default_scope)
    with META:
        return check_model(cfg, pretrained=False).eval()


def _count_params(model: nn.Module) -> dict[str, int]:
    params = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = name.partition('.')[0]
        params[part if part in PARTS else 'heads'] += parameter.numel()
    return params


class _Inference:
    """Runs the forward pass of a classifier, detector or segmentor, without post-processing."""

    def __init__(self, model: Any, scope: str) -> None:
        self.model = model
        self.run = dict(mmpretrain=self.classify, mmdet=self.detect, mmseg=self.segment)[scope]

    def __call__(self, image: Tensor) -> None:
        sides = tuple(image.shape[-2:])
        sample = BaseDataElement(metainfo=dict(img_shape=sides, batch_input_shape=sides))
        self.run(image, [sample])

    def classify(self, image: Tensor, samples: list[BaseDataElement]) -> None:
        self.model(image, mode='tensor')

    def segment(self, image: Tensor, samples: list[BaseDataElement]) -> None:
        features = self.model.extract_feat(image)
        head = self.model.decode_head
        # Mask2Former's is a head of mmdet, which takes data samples too.
        head(features, samples) if hasattr(head, 'pixel_decoder') else head(features)

    def detect(self, image: Tensor, samples: list[BaseDataElement]) -> None:
        model = self.model
        if hasattr(model, 'forward_transformer'):
            model(image, samples, mode='tensor')
            return
        features = model.extract_feat(image)
        if hasattr(model, 'panoptic_head'):
            model.panoptic_head(features, samples)
        elif not hasattr(model, 'roi_head'):
            model.bbox_head(features)
        else:
            model.rpn_head(features)
            self.run_roi_heads('bbox', BOX_ROIS)
            if model.roi_head.with_mask:
                self.run_roi_heads('mask', MASK_ROIS)

    def run_roi_heads(self, name: str, rois: int) -> None:
        heads = getattr(self.model.roi_head, f'{name}_head')
        extractors = getattr(self.model.roi_head, f'{name}_roi_extractor')
        if not isinstance(heads, nn.ModuleList):  # not the stages of a cascade
            heads, extractors = [heads], [extractors]
        for head, extractor in zip(heads, extractors, strict=True):
            size = extractor.roi_layers[0].output_size
            head(torch.empty(rois, extractor.out_channels, *size, device=META))


def _matmul(out: Tensor, a: Tensor, b: Tensor) -> int:
    return a.numel() * b.shape[-1]


def _matmul_and_sum(out: Tensor, c: Tensor, a: Tensor, b: Tensor, **factors: Any) -> int:
    return _matmul(out, a, b)


def _pooling_to_one(out: Tensor, x: Tensor, dims: Sequence[int] = (), *_: Any) -> int:
    return x.numel() if sorted(dims) == [-2, -1] else 0


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *args: Any) -> int:
    transposed = args[4]
    return weight.numel() * (x if transposed else out)[:, 0].numel()


aten = torch.ops.aten
# Operator -> its MACs by mmengine's rules, from its first output and its arguments.
COUNTS: dict[Any, Callable[..., int]] = {
    aten.mm: _matmul,
    aten.bmm: _matmul,
    aten.addmm: _matmul_and_sum,
    aten.baddbmm: _matmul_and_sum,
    aten.convolution: _convolution,
    aten.native_layer_norm: lambda out, *_: 5 * out.numel(),
    aten.native_group_norm: lambda out, *_: 5 * out.numel(),
    aten.native_batch_norm: lambda out, *_: 2 * out.numel(),
    aten.upsample_nearest2d: lambda out, *_: out.numel(),
    aten.upsample_bilinear2d: lambda out, *_: 4 * out.numel(),
    aten.grid_sampler_2d: lambda out, *_: 4 * out.numel(),
    aten._adaptive_avg_pool2d: lambda out, x, *_: x.numel(),
    aten.mean: _pooling_to_one,
}
MATMULS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.convolution)
"""Those of ``COUNTS`` that are matrix products or convolutions."""


class _Counter(TorchDispatchMode):
    """Counts MACs of what runs on the meta device, by part of the model.

    Heads of transformers read the sizes of feature maps from tensors, which the meta device cannot
    do. Small tensors created on the CPU therefore stay there until they meet a meta tensor.
    """

    LARGE = 10_000

    def __init__(self, parts: Mapping[str, nn.Module | None], operators: Sequence[Any]) -> None:
        super().__init__()
        self.operators = operators
        self.flops = dict.fromkeys(PARTS, 0)
        self.part = 'heads'
        for name, module in parts.items():
            if module is not None:
                module.register_forward_pre_hook(lambda *_, name=name: setattr(self, 'part', name))
                module.register_forward_hook(lambda *_: setattr(self, 'part', 'heads'))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_meta = [x.is_meta for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(on_meta) and not all(on_meta):
            args, kwargs = tree_map(_to_meta, (args, kwargs))
        if any(on_meta) and kwargs.get('device'):
            kwargs['device'] = META
        if func.overloadpacket is aten.grid_sampler_2d:  # its shape function is slow on meta
            out = args[0].new_empty(*args[0].shape[:2], *args[1].shape[1:3])
        else:
            out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.numel() > self.LARGE:
            out = _to_meta(out)
        if func.overloadpacket in self.operators:
            first = out[0] if isinstance(out, tuple) else out
            self.flops[self.part] += COUNTS[func.overloadpacket](first, *args, **kwargs)
        return out


def _to_meta(x: Any) -> Any:
    # Tensors without dimensions may stay: operators take them as numbers.
    return x.to(META) if isinstance(x, Tensor) and x.dim() and not x.is_meta else x


class _SayCPU(TorchFunctionMode):
    """Has tensors say that they are on the CPU: autocast, for one, does not know meta."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return CPU if func == Tensor.device.__get__ else func(*args, **(kwargs or {}))


def report(name: str, found: Complexity) -> str:
    """Format what was found as text."""
    height, width = found.shape
    rows = [(part, found.params[part], found.flops[part]) for part in PARTS]
    rows.append(('all', found.total_params, found.total_flops))
    lines = [f'{name} at {height} x {width}', '', f'{"":10}{"params (M)":>12}{"FLOPs (G)":>12}']
    lines += [f'{part:10}{params / 1e6:12.2f}{flops / 1e9:12.2f}' for part, params, flops in rows]
    return '\n'.join([*lines, '', *found.notes])


def main(argv: Sequence[str] | None = None) -> None:
    parser = config_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        '--shape', type=int, nargs='+', metavar='N', help='height and width; one number for both'
    )
    args = parser.parse_args(argv)
    shape = args.shape * 2 if args.shape and len(args.shape) == 1 else args.shape
    print(report(args.config, measure(read_config(args), shape)))

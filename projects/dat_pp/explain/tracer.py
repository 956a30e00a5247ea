"""Run a backbone and keep what its attention did.

Nothing of the model changes: forward hooks on the token mixers read their inputs, compute queries,
keys and sampling positions from them once more, and are removed whatever happens.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.dat import DAT
from ..models.layers import pad_bottom_right, split_heads
from ..models.mixers import MIXERS, DeformableAttention, NeighborhoodAttention
from .bias import bias_of
from .blocks import Block, DeformableBlock, NeighborhoodBlock
from .geometry import ImageGeometry, MapGeometry, stage_offsets


class Trace(Sequence[Block]):
    """The blocks of a backbone in the order in which they were run.

    Attributes:
        blocks: The blocks.
        images: How each image of the batch came into the model.
        input_size: Height and width of the model's input.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        images: Sequence[ImageGeometry],
        input_size: tuple[int, int],
    ) -> None:
        self.blocks = tuple(blocks)
        self.images = tuple(images)
        self.input_size = input_size

    @overload
    def __getitem__(self, index: int) -> Block: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Block]: ...

    def __getitem__(self, index: int | slice) -> Block | Sequence[Block]:
        return self.blocks[index]

    def __len__(self) -> int:
        return len(self.blocks)

    def __repr__(self) -> str:
        blocks = ', '.join(f'{block.name} {block.mixer}' for block in self.blocks)
        return f'Trace of {len(self.images)} image(s): {blocks}'

    @property
    def deformable(self) -> list[DeformableBlock]:
        """The blocks with deformable attention."""
        return [block for block in self.blocks if isinstance(block, DeformableBlock)]

    @property
    def neighborhood(self) -> list[NeighborhoodBlock]:
        """The blocks with neighborhood attention."""
        return [block for block in self.blocks if isinstance(block, NeighborhoodBlock)]

    def block(self, name: str) -> Block:
        """The block ``'STAGE.INDEX'``.

        Raises:
            ValueError: There is no such block; lists the names.
        """
        for block in self.blocks:
            if block.name == name:
                return block
        raise ValueError(f"no block '{name}'; there are {', '.join(b.name for b in self.blocks)}")


def trace(
    model: nn.Module,
    images: Tensor | Mapping[str, Any],
    geometry: Sequence[ImageGeometry] | None = None,
) -> Trace:
    """Run a model's DAT backbone and keep queries, keys and positions of every block.

    The model may be the backbone, a classifier, detector or segmentor of MMLab's, a timm model or
    any other module with a DAT in it; of several, the first is taken. Only the backbone runs, in
    evaluation mode and without gradients; the model is left as it was. Memory grows with the
    feature maps, not with the attention matrices.

    Args:
        model: The model.
        images: What the model's backbone takes, normalized images (B, C, H, W); or what a data
            preprocessor of MMLab's yields, a dict of ``inputs`` and ``data_samples``; or what it
            takes, such a dict whose inputs are a list of images or uint8.
        geometry: How each image came into the model, for positions in pixels of the original
            images. Default: what the metainfo of ``data_samples`` says; without them, images are
            taken to be as they were.

    Raises:
        ValueError: The model has no DAT, or ``geometry`` is not one per image.
    """
    backbone = find_backbone(model)
    inputs, samples = images, None
    if isinstance(images, Mapping):
        data: Any = images
        if not isinstance(data['inputs'], Tensor) or data['inputs'].dtype == torch.uint8:
            data = model.data_preprocessor(data, False)  # type: ignore[operator]
        inputs, samples = data['inputs'], data.get('data_samples')
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        raise ValueError('images must be a (B, C, H, W) tensor, or a dict with one as inputs')
    height, width = inputs.shape[2:]
    if geometry is None and samples:
        geometry = [ImageGeometry.from_metainfo(sample.metainfo) for sample in samples]
    elif geometry is None:
        geometry = [ImageGeometry((height, width), (height, width))] * len(inputs)
    if len(geometry) != len(inputs):
        raise ValueError(f'geometry must be one per image, {len(inputs)}; got {len(geometry)}')
    recorder = _Recorder(backbone, tuple(geometry))
    weight = next(backbone.parameters())
    with torch.no_grad(), _evaluation_mode(backbone), recorder.hooks():
        backbone.forward_stages(backbone.embed(inputs.to(weight.device, weight.dtype)))
    return Trace(recorder.blocks, geometry, (height, width))


def find_backbone(model: nn.Module) -> DAT:
    """The first DAT in a model.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, DAT):
            return module
    raise ValueError(f'no DAT backbone in this {type(model).__name__}')


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and restore the mode of each module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Recorder:
    """Makes the blocks of a trace while a backbone runs."""

    def __init__(self, backbone: DAT, images: tuple[ImageGeometry, ...]) -> None:
        self.backbone = backbone
        self.images = images
        self.blocks: list[Block] = []
        steps = [backbone.stem, *backbone.downsamples]
        convs = [[m for m in step.modules() if isinstance(m, nn.Conv2d)] for step in steps]
        self.places = stage_offsets(convs)

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for i, stage in enumerate(self.backbone.stages):
                for j, block in enumerate(stage):  # type: ignore[arg-type, var-annotated]
                    handle = block.mixer.register_forward_hook(partial(self.record, i, j))
                    stack.callback(handle.remove)
            yield

    def record(
        self, stage: int, index: int, mixer: nn.Module, inputs: tuple[Tensor], _: Any
    ) -> None:
        (x,) = inputs
        row = MIXERS[self.backbone.arch.mixers[stage][index]]
        size = (x.shape[2], x.shape[3])
        geometry = MapGeometry(size, *self.places[stage], self.images)
        common: dict[str, Any] = dict(
            stage=stage, index=index, mixer=row.description, geometry=geometry
        )
        if isinstance(mixer, DeformableAttention):
            self.blocks.append(_deformable(mixer, x, common))
        elif isinstance(mixer, NeighborhoodAttention):
            self.blocks.append(_neighborhood(mixer, x, common))
        else:
            self.blocks.append(Block(**common))


def _deformable(mixer: DeformableAttention, x: Tensor, common: dict[str, Any]) -> DeformableBlock:
    q_map = mixer.proj_q(x)
    dtype = torch.promote_types(q_map.dtype, torch.float32)
    q = split_heads(q_map, mixer.num_heads).to(dtype)
    height, width = x.shape[2:]
    if mixer.use_offset:
        points = mixer.sample_positions(q_map)  # (B, g, Hk, Wk, 2)
        sampled = mixer.sample(x, points)
        grid = points.shape[2:4]
        axes = [mixer.reference_points(length, points) for length in grid]
    else:
        kernel = min(mixer.stride, height), min(mixer.stride, width)
        sampled = F.avg_pool2d(x, kernel)
        grid = sampled.shape[2:4]
        axes = [_pool_centers(n, side, size, q) for n, side, size in zip(grid, kernel, x.shape[2:])]
    reference = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1).flatten(0, 1)
    reference = reference.expand(len(x), mixer.groups, -1, -1)
    k = split_heads(mixer.proj_k(sampled), mixer.num_heads).flatten(2, 3).to(dtype)
    return DeformableBlock(
        **common,
        q=q,
        k=k,
        reference=reference,
        positions=points.flatten(2, 3) if mixer.use_offset else reference,
        grid=(grid[0], grid[1]),
        bias=bias_of(mixer, dtype),
        query_y=mixer.query_positions(height, reference),
        query_x=mixer.query_positions(width, reference),
    )


def _pool_centers(count: int, kernel: int, length: int, like: Tensor) -> Tensor:
    """Normalized centers of the cells of an axis of ``length`` that are pooled, (count,)."""
    first = torch.arange(count, dtype=like.dtype, device=like.device) * kernel
    return (first + (kernel - 1) / 2) * 2 / max(length - 1, 1) - 1


def _neighborhood(
    mixer: NeighborhoodAttention, x: Tensor, common: dict[str, Any]
) -> NeighborhoodBlock:
    x = pad_bottom_right(x, mixer.kernel_size, mixer.kernel_size)
    qk = mixer.qkv(x.permute(0, 2, 3, 1)).unflatten(-1, (3, mixer.num_heads, -1))[..., :2, :, :]
    q, k = qk.permute(3, 0, 4, 1, 2, 5)  # (B, heads, H, W, d) each
    dtype = torch.promote_types(q.dtype, torch.float32)
    return NeighborhoodBlock(
        **common,
        q=q.to(dtype, copy=True),  # not a view of the values too
        k=k.to(dtype, copy=True),
        table=mixer.rpb.detach().to(dtype, copy=True),
    )

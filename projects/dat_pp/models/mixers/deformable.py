"""Mixer "D": deformable multi-head attention (DAT, section 3.2)."""

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import attention, deformable_attention
from ..layers import PointwiseConv, merge_heads, pad_bottom_right, resize_table, split_heads

if TYPE_CHECKING:
    from ..arch import Arch

PositionBias = Literal['table', 'none', 'dwconv', 'fixed', 'log_cpb']
Coordinates = Literal['dat++', 'dat']


class SharedDepthwiseConv(nn.Conv2d):
    """Depthwise convolution with the same kernels for every group of channels.

    (B, groups * channels, H, W) -> (B, groups * channels, H', W'). The kernels are repeated, since
    moving the groups into the batch would copy the feature map. Without padding, a feature map
    smaller than the kernel is zero-padded to its size.
    """

    bias: Tensor

    def __init__(self, channels: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__(channels, channels, kernel_size, stride, padding, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == (0, 0):
            x = pad_bottom_right(x, *self.kernel_size)
        groups = x.shape[1] // self.out_channels
        weight, bias = self.weight.repeat(groups, 1, 1, 1), self.bias.repeat(groups)
        return F.conv2d(x, weight, bias, self.stride, self.padding, groups=x.shape[1])


class OffsetNetwork(nn.Module):
    """Predict offsets from queries, with shared weights for all groups (DAT, figure 2 b).

    (B, groups * channels, H, W) -> (B, groups, Hk, Wk, 2), offsets (dy, dx), in float32 or float64
    whatever the dtype of the queries: half precision would move samples by a noticeable part of a
    pixel.
    """

    def __init__(self, channels: int, groups: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.groups = groups
        padding = 0 if kernel_size == stride else kernel_size // 2
        self.dwconv = SharedDepthwiseConv(channels, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(channels)
        self.act = nn.GELU()
        self.proj = nn.Conv2d(channels, 2, 1, bias=False)

    def forward(self, q_map: Tensor) -> Tensor:
        hidden = self.dwconv(q_map).permute(0, 2, 3, 1)
        hidden = hidden.unflatten(-1, (self.groups, -1))  # (B, Hk, Wk, g, C / g)
        hidden = self.act(self.norm(hidden))
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        device = q_map.device.type
        # The meta device has no autocast; shapes and FLOPs of a model are computed there.
        with nullcontext() if device == 'meta' else torch.autocast(device, enabled=False):
            offset = F.linear(hidden.to(dtype), self.proj.weight.flatten(1).to(dtype))
        return offset.movedim(3, 1).contiguous()


class DeformableAttention(nn.Module):
    """Every query attends to features sampled at learned positions (DAT, section 3.2).

    (B, C, H, W) -> (B, C, H, W). A small network predicts offsets to a uniform grid of reference
    points, one grid per offset group; keys and values are projected from the features sampled
    there.

    Args:
        channels: Channels C of the feature map.
        num_heads: Attention heads; divides ``channels``.
        groups: Offset groups; divides ``num_heads``.
        stride: Stride of the grid of reference points.
        kernel_size: Kernel size of the offset network's depthwise convolution.
        offset_range: Bound of the offsets, by tanh, in half steps of the grid. Negative: offsets
            are not bounded, and positions are clamped to the feature map.
        position_bias: ``'table'`` (deformable relative position bias), ``'none'``, ``'dwconv'``
            (depthwise convolution of the queries, added to the output), ``'fixed'`` (one learned
            value per query and sample) or ``'log_cpb'`` (an MLP of log-spaced displacements).
        native_size: Size H0 x W0 of the feature map at the model's native resolution, which the
            tables are made for.
        coordinates: Normalization of positions: ``'dat++'`` (2023) or ``'dat'`` (2022).
        use_offset: Whether to sample; else keys and values are average-pooled and there is no
            position bias.
        attn_drop: Dropout of the attention weights.
        drop: Dropout of the output.
    """

    rpe_table: Any
    """Parameters of the position bias; named as in the published code, whatever the bias."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        groups: int,
        stride: int,
        kernel_size: int,
        offset_range: float,
        position_bias: PositionBias,
        native_size: tuple[int, int],
        coordinates: Coordinates = 'dat++',
        use_offset: bool = True,
        attn_drop: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.groups = groups
        self.stride = stride
        self.offset_range = offset_range
        self.position_bias = position_bias if use_offset else 'none'
        self.coordinates = coordinates
        self.use_offset = use_offset
        self.attn_drop = attn_drop

        self.conv_offset = OffsetNetwork(channels // groups, groups, kernel_size, stride)
        if not use_offset:  # unused, but part of published checkpoints
            self.conv_offset.requires_grad_(False)

        self.proj_q = PointwiseConv(channels, channels)
        self.proj_k = PointwiseConv(channels, channels)
        self.proj_v = PointwiseConv(channels, channels)
        self.proj_out = PointwiseConv(channels, channels)
        self.drop = nn.Dropout(drop)
        self._build_bias(channels, native_size)

    @staticmethod
    def settings(arch: 'Arch', stage: int) -> dict[str, Any]:
        heads, groups = arch.num_heads[stage], arch.offset_groups[stage]
        if heads % groups:
            raise ValueError(
                f'offset_groups {groups} do not divide num_heads {heads} in stage {stage}'
            )
        kernel_size, stride = arch.offset_kernel_sizes[stage], arch.offset_strides[stage]
        if kernel_size < stride or (kernel_size % 2 == 0 and kernel_size != stride):
            raise ValueError(
                f'offset_kernel_sizes {kernel_size} in stage {stage} must be odd and no less than '
                f'the stride {stride}, or equal to it'
            )
        return dict(
            channels=arch.embed_dims[stage],
            num_heads=heads,
            groups=groups,
            stride=stride,
            kernel_size=kernel_size,
            offset_range=arch.offset_range[stage],
            position_bias=arch.position_bias[stage],
            native_size=tuple(-(-side // (4 * 2**stage)) for side in arch.native_resolution),
            coordinates=arch.coordinates,
            use_offset=arch.use_offset[stage],
        )

    def _build_bias(self, channels: int, native_size: tuple[int, int]) -> None:
        height, width = native_size
        if self.position_bias == 'table':
            shape = (self.num_heads, 2 * height - 1, 2 * width - 1)
            self.rpe_table = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.01))
        elif self.position_bias == 'fixed':
            conv = self.conv_offset.dwconv
            margin = 2 * int(conv.padding[0]) - conv.kernel_size[0]
            samples = math.prod(max(0, n + margin) // self.stride + 1 for n in native_size)
            shape = (self.num_heads, height * width, samples)
            self.rpe_table = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.01))
        elif self.position_bias == 'dwconv':
            self.rpe_table = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        elif self.position_bias == 'log_cpb':
            self.rpe_table = nn.Sequential(
                nn.Linear(2, 32),
                nn.ReLU(),
                nn.Linear(32, self.num_heads // self.groups, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        q_map = self.proj_q(x)
        positions = None
        if self.use_offset:
            positions = self.sample_positions(q_map)  # (B, g, Hk, Wk, 2)
            sampled = self.sample(x, positions)
            positions = positions.flatten(2, 3)
        else:
            kernel = min(self.stride, x.shape[2]), min(self.stride, x.shape[3])
            sampled = F.avg_pool2d(x, kernel)
        q = split_heads(q_map, self.num_heads)  # (B, heads, H, W, d)
        k = split_heads(self.proj_k(sampled), self.num_heads).flatten(2, 3)  # (B, heads, N, d)
        v = split_heads(self.proj_v(sampled), self.num_heads).flatten(2, 3)

        out = merge_heads(self.attend(q, k, v, positions))
        if self.position_bias == 'dwconv':
            out = out + self.rpe_table(q_map)
        return self.drop(self.proj_out(out))

    def sample_positions(self, q_map: Tensor) -> Tensor:
        """Normalized (y, x) of the samples, (B, g, Hk, Wk, 2), in float32 or float64."""
        offset = self.conv_offset(q_map)
        size = offset.shape[2:4]
        axes = [self.reference_points(length, offset) for length in size]
        reference = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)
        if self.offset_range < 0:
            positions = reference + offset
            return positions.tanh() if self.coordinates == 'dat' else positions.clamp(-1, 1)
        if self.offset_range > 0 or self.coordinates == 'dat++':
            # The published code rounds the step to float32 in float64 models too.
            inverse = [1 / self.steps(length) for length in size]
            step = torch.tensor(inverse, dtype=torch.float32, device=offset.device)
            offset = offset.tanh() * step * self.offset_range
        return reference + offset

    def steps(self, length: int) -> int:
        """Divisor that normalizes an axis: ``length - 1`` (DAT++) or ``length`` (DAT)."""
        return length if self.coordinates == 'dat' else max(length - 1, 1)

    def reference_points(self, length: int, like: Tensor) -> Tensor:
        """Normalized pixel centers of an axis, (length,)."""
        if length == 1:  # the formula of DAT++ divides by zero; take the middle
            return torch.zeros(1, dtype=like.dtype, device=like.device)
        centers = torch.arange(length, dtype=like.dtype, device=like.device) + 0.5
        return centers * 2 / self.steps(length) - 1

    def query_positions(self, length: int, like: Tensor) -> Tensor:
        """Normalized positions of the queries on an axis, (length,)."""
        if self.coordinates == 'dat':
            return self.reference_points(length, like)
        if length == 1:
            return torch.zeros(1, dtype=like.dtype, device=like.device)
        return torch.arange(length, dtype=like.dtype, device=like.device) * 2 / (length - 1) - 1

    def sample(self, x: Tensor, positions: Tensor) -> Tensor:
        """Sample features bilinearly, (B, C, Hk, Wk), each group at its own positions."""
        groups = x.unflatten(1, (self.groups, -1)).flatten(0, 1)
        grid = positions.flip(-1).flatten(0, 1)  # grid_sample takes (x, y)
        sampled = F.grid_sample(groups.to(grid.dtype), grid, align_corners=True)
        sampled = sampled.unflatten(0, (-1, self.groups)).flatten(1, 2)
        # grid_sample returns NCHW, and two projections read this.
        return sampled.to(x.dtype, memory_format=torch.channels_last)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor | None) -> Tensor:
        """Attend from queries (B, heads, H, W, d) to the samples, with the position bias."""
        dropout_p = self.attn_drop if self.training else 0.0
        height, width = q.shape[2:4]
        if self.position_bias == 'table' and positions is not None:
            query_y = self.query_positions(height, positions)
            query_x = self.query_positions(width, positions)
            return deformable_attention(
                q, k, v, positions, self.rpe_table, query_y, query_x, dropout_p
            )
        bias = None
        if self.position_bias == 'fixed':
            size = (height * width, k.shape[2])
            bias = F.interpolate(
                self.rpe_table[None], size=size, mode='bilinear', align_corners=True
            )
        elif self.position_bias == 'log_cpb' and positions is not None:
            bias = self.log_cpb(positions, height, width)
        return attention(q.flatten(2, 3), k, v, bias, dropout_p).view(q.shape)

    def log_cpb(self, positions: Tensor, height: int, width: int) -> Tensor:
        """Position bias from log-spaced displacements (Swin V2), (B, heads, H * W, N)."""
        axes = self.query_positions(height, positions), self.query_positions(width, positions)
        queries = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1).flatten(0, 1)
        displacement = 4 * (queries[:, None] - positions[:, :, None])  # (B, g, H * W, N, 2)
        displacement = displacement.sign() * (displacement.abs() + 1).log2() / 3
        bias = self.rpe_table(displacement.to(self.rpe_table[0].weight.dtype))
        return bias.movedim(-1, 2).flatten(1, 2)

    def resize_tables(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Resize a table of another native resolution in ``state_dict``."""
        table = state_dict.get(prefix + 'rpe_table')
        if self.position_bias == 'table' and table is not None and table.dim() == 3:
            size = tuple(self.rpe_table.shape[1:])
            if table.shape[1:] != size:
                state_dict[prefix + 'rpe_table'] = resize_table(table, size)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        self.resize_tables(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

"""Position bias of chosen queries of deformable attention, apart from a model.

:class:`dat_pp.models.mixers.DeformableAttention` computes the bias of all queries of a map; a trace
asks for few at a time. A bias is called with the normalized positions of the samples, (B, g, N, 2),
and the normalized positions (Q, 2) and numbers (Q,) of the queries, counted along the rows of the
map of ``size``. It returns what is added to the logits, (B or 1, heads, Q, N).
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.mixers import DeformableAttention


@dataclass(frozen=True)
class TableBias:
    """Deformable relative position bias: half the displacement, looked up in a table per head."""

    table: Tensor
    """(heads, 2 H0 - 1, 2 W0 - 1)."""

    def __call__(
        self, positions: Tensor, queries: Tensor, numbers: Tensor, size: tuple[int, int]
    ) -> Tensor:
        batch, groups = positions.shape[:2]
        displacement = (queries[:, None] - positions[:, :, None]) / 2  # (B, g, Q, N, 2)
        # Beyond 3 the bias is zero for tables of any size; grid_sample makes NaN of infinity.
        displacement = displacement.clamp(-3, 3).flatten(0, 1)
        tables = self.table.to(displacement.dtype).unflatten(0, (groups, -1))
        tables = tables.expand(batch, -1, -1, -1, -1).flatten(0, 1)
        bias = F.grid_sample(tables, displacement.flip(-1), align_corners=True)
        return bias.unflatten(0, (batch, groups)).flatten(1, 2)


@dataclass(frozen=True)
class FixedBias:
    """One learned value per query and sample, resized bilinearly to the map."""

    table: Tensor
    """(heads, H0 W0, N0), for the native size."""

    def __call__(
        self, positions: Tensor, queries: Tensor, numbers: Tensor, size: tuple[int, int]
    ) -> Tensor:
        rows, total = self.table.shape[1], size[0] * size[1]
        step = (rows - 1) / (total - 1) if total > 1 else 0.0
        place = (numbers.to(positions.dtype) * step).clamp(max=rows - 1)
        low = place.long().clamp(max=max(rows - 2, 0))
        high = (low + 1).clamp(max=rows - 1)
        table = self.table.to(positions.dtype)
        chosen = table[:, low].lerp(table[:, high], (place - low)[:, None].expand_as(table[0, low]))
        samples = positions.shape[2]
        return F.interpolate(chosen, size=samples, mode='linear', align_corners=True)[None]


@dataclass(frozen=True)
class LogCpbBias:
    """An MLP of log-spaced displacements (Swin V2)."""

    mlp: nn.Module

    def __call__(
        self, positions: Tensor, queries: Tensor, numbers: Tensor, size: tuple[int, int]
    ) -> Tensor:
        displacement = 4 * (queries[:, None] - positions[:, :, None])  # (B, g, Q, N, 2)
        bias = self.mlp(displacement.sign() * (displacement.abs() + 1).log2() / 3)
        return bias.movedim(-1, 2).flatten(1, 2)


Bias = TableBias | FixedBias | LogCpbBias


def bias_of(mixer: DeformableAttention, dtype: torch.dtype) -> Bias | None:
    """Copy the position bias that a mixer adds to its logits; None if it adds none."""
    if mixer.position_bias == 'table':
        return TableBias(mixer.rpe_table.detach().to(dtype, copy=True))
    if mixer.position_bias == 'fixed':
        return FixedBias(mixer.rpe_table.detach().to(dtype, copy=True))
    if mixer.position_bias == 'log_cpb':
        return LogCpbBias(deepcopy(mixer.rpe_table).to(dtype).requires_grad_(False))
    return None

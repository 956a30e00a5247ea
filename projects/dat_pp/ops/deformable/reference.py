"""Backend ``reference``: the definition of deformable attention."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dense import attention
from ..dispatch import Backend


def sampled_bias(positions: Tensor, table: Tensor, query_y: Tensor, query_x: Tensor) -> Tensor:
    """Position bias of every query and sample, (B, h, H * W, N)."""
    batch, groups, samples, _ = positions.shape
    heads = table.shape[0]
    queries = torch.stack(torch.meshgrid(query_y, query_x, indexing='ij'), -1).flatten(0, 1)
    displacement = (queries[:, None] - positions[:, :, None]) / 2  # (B, g, H * W, N, 2)
    # Beyond 3 the bias is zero for tables of any size; grid_sample makes NaN of infinity.
    displacement = displacement.clamp(-3, 3)
    tables = table.to(displacement.dtype).view(groups, heads // groups, *table.shape[1:])
    bias = F.grid_sample(
        tables.expand(batch, -1, -1, -1, -1).flatten(0, 1),
        displacement.flip(-1).flatten(0, 1),  # grid_sample expects (x, y)
        align_corners=True,
    )
    return bias.view(batch, heads, len(queries), samples)


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor | None,
    query_y: Tensor,
    query_x: Tensor,
    dropout_p: float = 0.0,
) -> Tensor:
    bias = None if table is None else sampled_bias(positions, table, query_y, query_x)
    return attention(q.flatten(2, 3), k, v, bias, dropout_p).view(q.shape)


BACKEND = Backend('reference', run)

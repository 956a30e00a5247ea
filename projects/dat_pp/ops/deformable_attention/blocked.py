"""Deformable attention over blocks of query rows, so that memory stays bounded."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .reference import reference

MAX_LOGITS = 2**24
"""Query-sample pairs, over batch and heads, that are in memory at once."""


def blocked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor | None,
    query_y: Tensor,
    query_x: Tensor,
    dropout_p: float = 0.0,
) -> Tensor:
    batch, heads, height, width, _ = q.shape
    rows = max(1, MAX_LOGITS // (batch * heads * width * k.shape[2]))
    if rows >= height:
        return reference(q, k, v, positions, table, query_y, query_x, dropout_p)
    blocks = [
        # Checkpointing: the backward pass rebuilds the logits of one block at a time.
        checkpoint(
            reference,
            q[:, :, y : y + rows],
            k,
            v,
            positions,
            table,
            query_y[y : y + rows],
            query_x,
            dropout_p,
            use_reentrant=False,
        )
        for y in range(0, height, rows)
    ]
    return torch.cat(blocks, 2)

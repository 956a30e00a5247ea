"""Backend ``blocked``: the definition over blocks of query rows, so that memory stays bounded."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..dispatch import Backend
from . import reference

MAX_LOGITS = 2**24
"""Logits, over batch and heads, that are in memory at once."""


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
    batch, heads, height, width, _ = q.shape
    rows = max(1, MAX_LOGITS // max(1, batch * heads * width * k.shape[2]))
    if rows >= height:
        return reference.run(q, k, v, positions, table, query_y, query_x, dropout_p)
    blocks = [
        # Checkpointing: the backward pass recomputes the logits of one block at a time.
        checkpoint(
            reference.run,
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


BACKEND = Backend('blocked', run)

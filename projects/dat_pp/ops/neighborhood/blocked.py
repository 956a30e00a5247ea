"""Backend ``blocked``: dense attention of tiles of queries to the keys in their reach.

A tile of T x T queries reaches at most (T + K - 1) x (T + K - 1) keys. A masked matrix product with
these takes a few times the FLOPs of the windows alone, but no key is copied K * K times.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..dense import attention
from ..dispatch import Backend
from .dilation import by_residue_class
from .reference import window_of

TILE = 8
"""Largest side of a tile."""
MAX_LOGITS = 2**24
"""Logits, over batch and heads, that are in memory at once."""


class _Axis(NamedTuple):
    """Tiles of an axis: n tiles of t queries, each with r keys."""

    queries: Tensor
    """Indices of the queries, (n, t); the last index repeats beyond the end."""
    keys: Tensor
    """Indices of the keys, (n, r)."""
    inside: Tensor
    """Whether the key is in the window of the query, (n, t, r)."""
    offset: Tensor
    """key - query + K - 1, (n, t, r), clamped where the key is outside the window."""


def _tile_axis(length: int, kernel: int, device: torch.device) -> _Axis:
    count = math.ceil(length / TILE)
    tile = math.ceil(length / count)
    reach = min(tile + kernel - 1, length)
    first = torch.arange(count, device=device)[:, None] * tile
    queries = (first + torch.arange(tile, device=device)).clamp(max=length - 1)
    keys = (first - kernel // 2).clamp(0, length - reach) + torch.arange(reach, device=device)
    window = window_of(length, kernel, 1, device)[0][queries, :1]
    inside = (keys[:, None] >= window) & (keys[:, None] < window + kernel)
    offset = (keys[:, None] - queries[:, :, None] + kernel - 1).clamp(0, 2 * kernel - 2)
    return _Axis(queries, keys, inside, offset)


def _tiles(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, h, H, W, d) -> (B, h, row tiles, column tiles, tile area, d)."""
    x = x[:, :, rows][:, :, :, :, columns]  # (B, h, row tiles, rows, column tiles, columns, d)
    return x.transpose(3, 4).flatten(4, 5)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, y: _Axis, x: _Axis, dropout_p: float
) -> Tensor:
    """Output of all queries of the tiles, also beyond the end: (B, h, rows, columns, d)."""
    batch, heads, *_, dim = q.shape
    # (h, row tiles, column tiles, query y, query x, key y, key x)
    dy = y.offset[:, None, :, None, :, None]
    dx = x.offset[None, :, None, :, None, :]
    inside = y.inside[:, None, :, None, :, None] & x.inside[None, :, None, :, None, :]
    tile_bias = bias[:, dy, dx].masked_fill(~inside, -torch.inf)
    out = attention(
        _tiles(q, y.queries, x.queries),
        _tiles(k, y.keys, x.keys),
        _tiles(v, y.keys, x.keys),
        tile_bias.flatten(5, 6).flatten(3, 4),
        dropout_p,
    )
    (ny, ty), (nx, tx) = y.queries.shape, x.queries.shape
    out = out.view(batch, heads, ny, nx, ty, tx, dim).transpose(3, 4)
    return out.reshape(batch, heads, ny * ty, nx * tx, dim)


def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float = 0.0) -> Tensor:
    batch, heads, height, width, _ = q.shape
    kernel = (bias.shape[-1] + 1) // 2
    y, x = _tile_axis(height, kernel, q.device), _tile_axis(width, kernel, q.device)
    rows = max(1, MAX_LOGITS // max(1, batch * heads * y.inside[0].numel() * x.inside.numel()))
    if rows >= len(y.queries):
        out = _attend(q, k, v, bias, y, x, dropout_p)
    else:
        blocks = [
            # Checkpointing: the backward pass recomputes the logits of one block at a time.
            checkpoint(
                _attend,
                q,
                k,
                v,
                bias,
                _Axis(*(part[first : first + rows] for part in y)),
                x,
                dropout_p,
                use_reentrant=False,
            )
            for first in range(0, len(y.queries), rows)
        ]
        out = torch.cat(blocks, 2)
    return out[:, :, :height, :width]


BACKEND = Backend('blocked', by_residue_class(run))

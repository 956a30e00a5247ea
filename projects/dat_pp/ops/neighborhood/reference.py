"""Backend ``reference``: the definition of neighborhood attention."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Backend


def window_of(
    length: int, kernel: int, dilation: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Keys in the window of each query on an axis, and their indices into the bias, (length, K)."""
    query = torch.arange(length, device=device)
    if dilation == 1:  # keeps exported graphs free of divisions
        place, first = query, (query - kernel // 2).clamp(0, length - kernel)
    else:
        place = query // dilation  # in its residue class, which has ``count`` pixels
        count = (length - 1 - query % dilation) // dilation + 1
        first = (place - kernel // 2).clamp(min=0).minimum(count - kernel)
    offset = first[:, None] + torch.arange(kernel, device=device) - place[:, None]
    return query[:, None] + offset * dilation, offset + kernel - 1


def windows(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, h, H, W, d) -> (B, h, H, K, W, K, d), for the keys (H, K) and (W, K) of the axes."""
    # index_select exports any H and W.
    x = x.index_select(2, rows.flatten()).index_select(3, columns.flatten())
    return x.unflatten(3, (-1, columns.shape[1])).unflatten(2, (-1, rows.shape[1]))


def logits(q: Tensor, k: Tensor, bias: Tensor | None, kernel: int, dilation: int) -> Tensor:
    """Products of scaled queries and the keys in their windows plus bias, (B, h, H, W, K, K)."""
    rows, dy = window_of(q.shape[2], kernel, dilation, q.device)
    columns, dx = window_of(q.shape[3], kernel, dilation, q.device)
    products = torch.einsum('bhyxd,bhyixjd->bhyxij', q, windows(k, rows, columns))
    return products if bias is None else products + bias[:, dy[:, None, :, None], dx[:, None]]


def weighted_sum(weights: Tensor, v: Tensor, dilation: int) -> Tensor:
    """Sum of the values in each window, (B, h, H, W, d), for weights (B, h, H, W, K, K)."""
    kernel = weights.shape[-1]
    rows, _ = window_of(v.shape[2], kernel, dilation, v.device)
    columns, _ = window_of(v.shape[3], kernel, dilation, v.device)
    return torch.einsum('bhyxij,bhyixjd->bhyxd', weights, windows(v, rows, columns))


def run(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float = 0.0, dilation: int = 1
) -> Tensor:
    kernel = (bias.shape[-1] + 1) // 2
    scores = logits(q * q.shape[-1] ** -0.5, k, bias, kernel, dilation)
    weights = F.dropout(scores.flatten(-2).softmax(-1), dropout_p).view(scores.shape)
    return weighted_sum(weights.to(v.dtype), v, dilation)


BACKEND = Backend('reference', run)

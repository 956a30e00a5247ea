"""Backend ``reference``: the definition of neighborhood attention."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Backend


def window_starts(length: int, kernel: int, device: torch.device) -> Tensor:
    """First key of the window of each query on an axis, (length,) int64."""
    return (torch.arange(length, device=device) - kernel // 2).clamp(0, length - kernel)


def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float = 0.0) -> Tensor:
    height, width, dim = q.shape[2:]
    kernel = (bias.shape[-1] + 1) // 2
    steps = torch.arange(kernel, device=q.device)
    rows = window_starts(height, kernel, q.device)[:, None] + steps  # keys, (H, K)
    columns = window_starts(width, kernel, q.device)[:, None] + steps  # (W, K)

    def windows(x: Tensor) -> Tensor:  # (B, h, H, K, W, K, d); index_select exports any H and W
        x = x.index_select(2, rows.flatten()).index_select(3, columns.flatten())
        return x.unflatten(3, (-1, kernel)).unflatten(2, (-1, kernel))

    logits = torch.einsum('bhyxd,bhyixjd->bhyxij', q * dim**-0.5, windows(k))
    dy = rows - torch.arange(height, device=q.device)[:, None] + kernel - 1
    dx = columns - torch.arange(width, device=q.device)[:, None] + kernel - 1
    logits = logits + bias[:, dy[:, None, :, None], dx[None, :, None, :]]
    weights = F.dropout(logits.flatten(-2).softmax(-1), dropout_p).view(logits.shape)
    return torch.einsum('bhyxij,bhyixjd->bhyxd', weights.to(v.dtype), windows(v))


BACKEND = Backend('reference', run)

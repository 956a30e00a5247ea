"""The definition of neighborhood attention; arguments as in :func:`neighborhood_attention`."""

import torch
import torch.nn.functional as F
from torch import Tensor


def window_starts(length: int, kernel: int, device: torch.device) -> Tensor:
    """First key of each query's window on one axis, (length,) int64."""
    return (torch.arange(length, device=device) - kernel // 2).clamp(0, length - kernel)


def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float = 0.0) -> Tensor:
    height, width, dim = q.shape[2:]
    kernel = (bias.shape[-1] + 1) // 2
    start_y = window_starts(height, kernel, q.device)
    start_x = window_starts(width, kernel, q.device)

    def windows(x: Tensor) -> Tensor:  # (B, h, H, W, d, K, K)
        return x.unfold(2, kernel, 1).unfold(3, kernel, 1)[:, :, start_y][:, :, :, start_x]

    def offsets(start: Tensor) -> Tensor:  # (length, K), key - query + K - 1
        steps = torch.arange(kernel, device=q.device)
        query = torch.arange(len(start), device=q.device)
        return start[:, None] + steps - query[:, None] + kernel - 1

    logits = torch.einsum('bhyxd,bhyxdij->bhyxij', q * dim**-0.5, windows(k))
    dy, dx = offsets(start_y), offsets(start_x)
    logits = logits + bias[:, dy[:, None, :, None], dx[None, :, None, :]]
    weights = F.dropout(logits.flatten(-2).softmax(-1), dropout_p).view(logits.shape)
    return torch.einsum('bhyxij,bhyxdij->bhyxd', weights.to(v.dtype), windows(v))

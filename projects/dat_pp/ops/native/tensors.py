"""Memory layouts of the tensors that the C++ kernels read and write."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def heads_last(x: Tensor) -> Tensor:
    """Uninitialized (B, h, H, W, d) like ``x``, laid out in memory as a channels-last map."""
    batch, heads, height, width, dim = x.shape
    return x.new_empty(batch, height, width, heads, dim).permute(0, 3, 1, 2, 4)


def as_heads(x: Tensor, like: Tensor) -> Tensor:
    """A ``heads_last`` result without padded channels, in the shape and dtype of ``like``."""
    if x.shape == like.shape and x.dtype == like.dtype:
        return x
    return heads_last(like).copy_(x[..., : like.shape[-1]])


def as_map(x: Tensor, dim: int) -> Tensor:
    """Float32 with channels zero-padded to ``dim`` and the last axis contiguous."""
    x = x.float()
    if x.shape[-1] != dim:
        return F.pad(x, (0, dim - x.shape[-1]))
    return x if x.stride(-1) == 1 else x.contiguous()


def splits_of(pairs: int, tiles: int) -> int:
    """Number of parts, each with sums of its own, to cut the tiles of a (batch, head) pair into.

    Enough for all threads.
    """
    return max(1, min(tiles, math.ceil(4 * torch.get_num_threads() / max(pairs, 1))))

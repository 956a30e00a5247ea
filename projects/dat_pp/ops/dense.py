"""Scaled dot-product attention with an additive bias, written out."""

import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """``softmax(q k^T / sqrt(d) + bias) v``.

    Args:
        q: Queries, (..., M, d).
        k: Keys, (..., N, d).
        v: Values, (..., N, d).
        bias: Added to the logits, broadcastable to (..., M, N). A float32 bias with half-precision
            queries makes the softmax run in float32.
        dropout_p: Probability of dropping an attention weight; 0 when not training.

    Returns:
        (..., M, d), in the dtype of ``v``.
    """
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    weights = F.dropout(logits.softmax(-1), dropout_p)
    return weights.to(v.dtype) @ v

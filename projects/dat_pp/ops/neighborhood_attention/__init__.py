"""Neighborhood attention with a relative position bias (NAT; the local operator of DAT++)."""

from torch import Tensor

from ..backend import HAS_TRITON, select_backend
from .blocked import blocked
from .native import MAX_KERNEL, native
from .reference import reference

if HAS_TRITON:
    from .fused import fused as triton
else:
    triton = None  # select_backend never chooses it

BACKENDS = {'reference': reference, 'blocked': blocked, 'native': native, 'triton': triton}


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    dropout_p: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Attention of every query of a map to the K x K keys around it.

    On an axis of length L the window of query i starts at ``clamp(i - K // 2, 0, L - K)``, so
    that every query has K * K keys (NAT, arXiv 2204.07143, section 3.1); the logit of key j gets
    ``bias[..., j - i + K - 1]`` per axis.

    Args:
        q: Queries, (B, h, H, W, d).
        k: Keys, same shape.
        v: Values, same shape.
        bias: Bias tables, (h, 2 K - 1, 2 K - 1) with K odd; K is read off this shape.
        dropout_p: Probability of dropping an attention weight; 0 when not training.
        backend: ``'reference'`` (the definition; copies each key K * K times), ``'blocked'``
            (matrix products over tiles, bounded memory), ``'native'`` (compiled for the CPU) or
            ``'triton'`` (for GPUs). The last two have float16, bfloat16 and float32, heads of up to
            64 and 128 channels, and no dropout, the CPU's K up to 17. Default: the environment
            variable ``DAT_PP_BACKEND``, else the last two where they can run, else ``'blocked'``.

    Returns:
        (B, h, H, W, d). Differentiable in q, k, v and bias.

    Raises:
        ValueError: Shapes that do not fit, a map smaller than K, an unknown backend, or one that
            cannot run.
    """
    if k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f'q, k and v must have one shape, got {tuple(q.shape)}, {tuple(k.shape)}, '
            f'{tuple(v.shape)}'
        )
    _, heads, height, width, _ = q.shape
    size = bias.shape[-1]
    kernel = (size + 1) // 2
    if bias.shape != (heads, size, size) or size % 4 != 1:
        raise ValueError(
            f'bias must be ({heads}, 2 K - 1, 2 K - 1) with K odd, got {tuple(bias.shape)}'
        )
    if min(height, width) < kernel:
        raise ValueError(f'a {height} x {width} map is smaller than the {kernel} x {kernel} window')
    further = {}
    if kernel > MAX_KERNEL:
        further['native'] = f'a window of {kernel} is above {MAX_KERNEL}'
    run = select_backend(BACKENDS, q, k, v, dropout_p, backend, further)
    return run(q, k, v, bias, dropout_p)

"""Neighborhood attention with a relative position bias (NAT; the local operator of DAT++)."""

from torch import Tensor

from ..checks import check_device, check_dtype, check_floating, check_queries, check_window
from ..dispatch import by_name, select
from . import blocked, native, reference, triton

BACKENDS = by_name(native.BACKEND, triton.BACKEND, blocked.BACKEND, reference.BACKEND)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    dropout_p: float = 0.0,
    backend: str | None = None,
    dilation: int = 1,
) -> Tensor:
    """Attention of every query of a map to the K x K keys around it.

    On an axis of length L the window of query i starts at ``clamp(i - K // 2, 0, L - K)``, so that
    every query has K * K keys (NAT, arXiv 2204.07143, section 3.1); the logit of key j is offset by
    ``bias[..., j - i + K - 1]`` per axis.

    With dilation D (DiNAT, arXiv 2209.15001, section 3.1) this holds for the pixels ``r, r + D,
    r + 2 D, ...`` of each residue class r on their own, i and j being places among them: a query
    attends to the K x K nearest pixels of its own class.

    Args:
        q: Queries, (B, h, H, W, d).
        k: Keys, in the shape and dtype of ``q``.
        v: Values, in the shape and dtype of ``q``.
        bias: Bias tables, (h, 2 K - 1, 2 K - 1) with K odd; K is read off this shape.
        dropout_p: Probability of dropping an attention weight; 0 when not training.
        backend: ``'reference'`` (the definition; copies each key K * K times), ``'blocked'``
            (matrix products over tiles, bounded memory), ``'native'`` (compiled for the CPU) or
            ``'triton'`` (for GPUs). The last two support float16, bfloat16 and float32, heads of
            up to 64 and 128 channels, and no dropout, ``'native'`` windows of up to K = 17.
            Default: the environment variable ``DAT_PP_BACKEND``; else ``'reference'`` in exporters
            and under torch.func; else the last two where they can run, ``'blocked'`` elsewhere.
        dilation: Distance D between neighboring keys of a window, at least 1.

    Returns:
        (B, h, H, W, d). Differentiable in q, k, v and bias.

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit, a map smaller than K * D, an unknown
            backend, or one that cannot run.
    """
    _check(q, k, v, bias, dilation)
    inputs = q, k, v, bias, dropout_p, dilation
    return select(BACKENDS, inputs, backend).run(*inputs)


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dilation: int) -> None:
    check_queries(q)
    if k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f'q, k and v must have one shape, got {tuple(q.shape)}, {tuple(k.shape)}, '
            f'{tuple(v.shape)}'
        )
    check_dtype((q.dtype,), k=k, v=v)
    check_device(q, k=k, v=v, bias=bias)
    heads, height, width = q.shape[1:4]
    size = bias.shape[-1] if bias.dim() else 0
    kernel = (size + 1) // 2
    if bias.shape != (heads, size, size) or size % 4 != 1:
        raise ValueError(
            f'bias must be ({heads}, 2 K - 1, 2 K - 1) with K odd, got {tuple(bias.shape)}'
        )
    check_floating(bias=bias)
    check_window(height, width, kernel, dilation)

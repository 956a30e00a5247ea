"""Deformable attention with a sampled relative position bias (DAT, section 3.2)."""

import torch
from torch import Tensor

from ..checks import check_device, check_dtype, check_floating, check_queries
from ..dispatch import by_name, select
from . import blocked, native, reference, triton

BACKENDS = by_name(native.BACKEND, triton.BACKEND, blocked.BACKEND, reference.BACKEND)


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor | None,
    query_y: Tensor,
    query_x: Tensor,
    dropout_p: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Attention of every query of a map to N keys sampled at learned positions.

    For the query at ``(y, x)`` and sample n of head h in offset group g::

        out = softmax_n(q . k_n / sqrt(d) + B_h((query_y[y], query_x[x]) - positions[g, n])) . v

    (DAT, equations 6 to 8), where ``B_h`` looks up half the displacement, which lies in [-1, 1], in
    the table of head h: bilinear, corners aligned, zero outside. Infinite positions lie outside;
    NaN positions give NaN.

    Args:
        q: Queries, (B, h, H, W, d).
        k: Keys, (B, h, N, d), in the dtype of ``q``.
        v: Values, (B, h, N, d), in the dtype of ``q``.
        positions: Normalized positions (y, x) of the samples, (B, g, N, 2), float32 or float64;
            g divides h, and head i belongs to group ``i // (h / g)``.
        table: Bias tables, (h, 2 H0 - 1, 2 W0 - 1), where H0 x W0 is any native map size; None for
            no bias.
        query_y: Normalized y of the query rows, (H,), float32 or float64.
        query_x: Normalized x of the query columns, (W,), float32 or float64.
        dropout_p: Probability of dropping an attention weight; 0 when not training.
        backend: ``'reference'`` (the definition; holds all logits), ``'blocked'`` (bounded memory),
            ``'native'`` (compiled for the CPU) or ``'triton'`` (for GPUs). The last two support
            float16, bfloat16 and float32, heads of up to 64 and 128 channels, and no dropout.
            Default: the environment variable ``DAT_PP_BACKEND``; else ``'reference'`` in exporters
            and under torch.func; else the last two where they can run, ``'blocked'`` elsewhere.

    Returns:
        (B, h, H, W, d). Differentiable in q, k, v, positions and table.

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit, an unknown backend, or one that
            cannot run.
    """
    _check(q, k, v, positions, table, query_y, query_x)
    inputs = q, k, v, positions, table, query_y, query_x, dropout_p
    return select(BACKENDS, inputs, backend).run(*inputs)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor | None,
    query_y: Tensor,
    query_x: Tensor,
) -> None:
    check_queries(q)
    batch, heads, height, width, dim = q.shape
    if positions.dim() != 4 or positions.shape[0] != batch or positions.shape[3] != 2:
        raise ValueError(f'positions must be ({batch}, g, N, 2), got {tuple(positions.shape)}')
    groups, samples = positions.shape[1:3]
    if not (groups and samples):
        raise ValueError(f'positions must hold samples, got {tuple(positions.shape)}')
    if k.shape != (batch, heads, samples, dim) or v.shape != k.shape:
        raise ValueError(
            f'k and v must be {(batch, heads, samples, dim)} to fit q and positions, '
            f'got {tuple(k.shape)} and {tuple(v.shape)}'
        )
    if heads % groups:
        raise ValueError(f'{groups} groups of positions do not divide {heads} heads')
    if query_y.shape != (height,) or query_x.shape != (width,):
        raise ValueError(
            f'query_y and query_x must be ({height},) and ({width},), '
            f'got {tuple(query_y.shape)} and {tuple(query_x.shape)}'
        )
    check_dtype((q.dtype,), k=k, v=v)
    axes = dict(positions=positions, query_y=query_y, query_x=query_x)
    check_dtype((torch.float32, torch.float64), **axes)
    check_device(q, k=k, v=v, table=table, **axes)
    if table is not None:
        if table.dim() != 3 or table.shape[0] != heads or 0 in table.shape:
            raise ValueError(f'table must be ({heads}, rows, columns), got {tuple(table.shape)}')
        check_floating(table=table)

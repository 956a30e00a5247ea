"""Deformable attention with a sampled relative position bias (DAT, section 3.2)."""

from torch import Tensor

from ..backend import HAS_TRITON, select_backend
from .blocked import blocked
from .native import native
from .reference import reference

if HAS_TRITON:
    from .fused import fused as triton
else:
    triton = None  # select_backend never chooses it

BACKENDS = {'reference': reference, 'blocked': blocked, 'native': native, 'triton': triton}


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

    (DAT, equations 6 to 8), where ``B_h`` looks half the displacement, which lies in [-1, 1], up
    in the table of head h: bilinear, corners aligned, zero outside.

    Args:
        q: Queries, (B, h, H, W, d).
        k: Keys, (B, h, N, d).
        v: Values, (B, h, N, d).
        positions: Normalised positions (y, x) of the samples, (B, g, N, 2), float32 or float64;
            g divides h, head i belongs to group ``i // (h / g)``.
        table: Bias tables, (h, 2 H0 - 1, 2 W0 - 1), H0 x W0 being any native map size; None for
            no bias.
        query_y: Normalised y of the query rows, (H,).
        query_x: Normalised x of the query columns, (W,).
        dropout_p: Probability of dropping an attention weight; 0 when not training.
        backend: ``'reference'`` (the definition; holds all logits), ``'blocked'`` (bounded memory),
            ``'native'`` (compiled for the CPU) or ``'triton'`` (for GPUs). The last two have
            float16, bfloat16 and float32, heads of up to 64 and 128 channels, and no dropout.
            Default: the environment variable ``DAT_PP_BACKEND``, else the last two where they can
            run, else ``'blocked'``.

    Returns:
        (B, h, H, W, d). Differentiable in q, k, v, positions and table.

    Raises:
        ValueError: Shapes that do not fit, an unknown backend, or one that cannot run.
    """
    batch, heads, height, width, dim = q.shape
    samples = positions.shape[2]
    if k.shape != (batch, heads, samples, dim) or v.shape != k.shape:
        raise ValueError(
            f'k and v must be {(batch, heads, samples, dim)} to fit q and positions, '
            f'got {tuple(k.shape)} and {tuple(v.shape)}'
        )
    if heads % positions.shape[1]:
        raise ValueError(f'{positions.shape[1]} groups of positions do not divide {heads} heads')
    if query_y.shape != (height,) or query_x.shape != (width,):
        raise ValueError(f'query_y and query_x must have {height} and {width} elements')
    if table is not None and (table.dim() != 3 or table.shape[0] != heads):
        raise ValueError(f'table must be ({heads}, rows, columns), got {tuple(table.shape)}')
    run = select_backend(BACKENDS, q, k, v, dropout_p, backend)
    return run(q, k, v, positions, table, query_y, query_x, dropout_p)

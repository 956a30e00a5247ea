"""Dilation for backends that have none: the map is split into maps of one residue class each.

With dilation d a query attends to pixels whose rows and columns equal its own modulo d. Every such
residue class is a map of its own, on which the attention is undilated. Sizes of the maps of an axis
differ by at most one, so at most 2 x 2 calls, batched over classes, compute all d x d of them.
"""

from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor

ROWS, COLUMNS = 2, 3


def by_residue_class(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a backend's ``run(q, k, v, bias, dropout_p)`` a last argument ``dilation``."""

    @wraps(run)
    def run_dilated(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float = 0.0, dilation: int = 1
    ) -> Tensor:
        if dilation == 1:
            return run(q, k, v, bias, dropout_p)

        def attend(*residues: range) -> Tensor:
            q_maps, k_maps, v_maps = (_maps(x, residues, dilation) for x in (q, k, v))
            out = run(q_maps, k_maps, v_maps, bias, dropout_p)
            return _interleaved(out, len(q), residues)

        rows, columns = (_classes_by_size(q.shape[axis], dilation) for axis in (ROWS, COLUMNS))
        strips = [
            _joined([attend(y, x) for x in columns], COLUMNS, columns, dilation) for y in rows
        ]
        return _joined(strips, ROWS, rows, dilation)

    return run_dilated


def _classes_by_size(length: int, dilation: int) -> list[range]:
    """Residue classes of an axis, those of one size together, the larger ones first."""
    larger = length % dilation
    return [residues for residues in (range(larger), range(larger, dilation)) if residues]


def _maps(x: Tensor, residues: Sequence[range], dilation: int) -> Tensor:
    """Maps of rows ``y`` and columns ``x`` modulo ``dilation``, (y * x * B, h, H', W', d)."""
    for axis, classes in zip((ROWS, COLUMNS), residues):
        x = x.narrow(axis, classes.start, x.shape[axis] - classes.start)
        x = x.unfold(axis, len(classes), dilation)
    return x.permute(5, 6, 0, 1, 2, 3, 4).flatten(0, 2)


def _interleaved(maps: Tensor, batch: int, residues: Sequence[range]) -> Tensor:
    """Inverse of ``_maps`` if there were no other classes: (B, h, H' * y, W' * x, d)."""
    y, x = map(len, residues)
    maps = maps.unflatten(0, (y, x, batch))
    return maps.permute(2, 3, 4, 0, 5, 1, 6).flatten(4, 5).flatten(2, 3)


def _joined(parts: Sequence[Tensor], axis: int, classes: Sequence[range], dilation: int) -> Tensor:
    """The axis with its pixels in order again, from one part for each of ``classes``."""
    if len(parts) == 1:
        return parts[0]
    joined = torch.cat(list(parts), axis)
    query = torch.arange(joined.shape[axis], device=joined.device)
    places = [query[c.start :].unfold(0, len(c), dilation).flatten() for c in classes]
    return joined.index_select(axis, torch.cat(places).argsort())

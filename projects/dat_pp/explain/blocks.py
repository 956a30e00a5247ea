"""What a trace keeps of a block, and the attention computed from it.

Attention matrices are not kept: a block holds queries, keys, positions and bias tables, and
computes the rows that are asked for, as the reference implementations of the operators do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .bias import Bias
from .geometry import MapGeometry

MAX_LOGITS = 2**22
"""Logits, over batch and heads, that are in memory at once."""

Queries = Tensor | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Block:
    """A block that was run. Those with a window, pooling or convolution keep nothing else."""

    stage: int
    """Stage of the block, from 0."""

    index: int
    """Position of the block in its stage, from 0."""

    mixer: str
    """The token mixer, in words."""

    geometry: MapGeometry
    """Where the cells of the block's feature map lie in the images."""

    @property
    def name(self) -> str:
        """``'STAGE.INDEX'``, as in the parameters' names."""
        return f'{self.stage}.{self.index}'

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the feature map."""
        return self.geometry.size

    def attention(self, queries: Queries) -> Tensor:
        raise ValueError(f'block {self.name} is {self.mixer}, which a trace keeps no weights of')

    def received(self, inside: bool = False) -> Tensor:
        raise ValueError(f'block {self.name} is {self.mixer}, not deformable attention')

    def queries_in_pixels(self, queries: Queries) -> Tensor:
        """Centers of queries (Q, 2) in pixels (y, x) of the original images, (B, Q, 2)."""
        rows, columns = self._check(queries)
        cells = torch.stack([rows, columns], -1).double()
        return self.geometry.to_pixels(cells.expand(len(self.geometry.images), -1, -1))

    def _check(self, queries: Queries, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Rows and columns of the queries.

        Raises:
            ValueError: They are no (Q, 2) integers, or outside of the map.
        """
        cells = torch.as_tensor(queries, device=device)
        if cells.dim() != 2 or cells.shape[1] != 2 or cells.is_floating_point():
            raise ValueError(
                f'queries must be integers (Q, 2), row and column of a cell; got '
                f'{tuple(cells.shape)}, {str(cells.dtype).removeprefix("torch.")}'
            )
        bad = ((cells < 0) | (cells >= cells.new_tensor(self.size))).any(1)
        if bad.any():
            height, width = self.size
            raise ValueError(
                f'query {tuple(cells[bad][0].tolist())} is outside of the {height} x {width} map '
                f'of block {self.name}'
            )
        rows, columns = cells.long().unbind(1)
        return rows, columns


@dataclass(frozen=True)
class DeformableBlock(Block):
    """A block with deformable attention: H x W queries, N samples in g groups, and the heads.

    Head i attends to the samples of group ``i // (heads / g)``. Sample n belongs to row
    ``n // grid[1]`` and column ``n % grid[1]`` of the grid of reference points.
    """

    q: Tensor
    """Queries, (B, heads, H, W, d), in float32 or float64."""

    k: Tensor
    """Keys, (B, heads, N, d)."""

    reference: Tensor
    """Reference points, (B, g, N, 2), normalized (y, x): -1 and 1 are the centers of the first and
    last cell of the map. Some of DAT++ lie beyond 1."""

    positions: Tensor
    """Where the features were sampled, (B, g, N, 2), normalized as ``reference``."""

    grid: tuple[int, int]
    """Height and width of the grid of reference points."""

    bias: Bias | None
    """Position bias of the logits."""

    query_y: Tensor
    """Normalized y of the rows of queries, (H,), as the position bias sees it."""

    query_x: Tensor
    """Normalized x of the columns of queries, (W,)."""

    @property
    def heads(self) -> int:
        return self.q.shape[1]

    @property
    def groups(self) -> int:
        return self.positions.shape[1]

    @property
    def offsets(self) -> Tensor:
        """``positions - reference``, (B, g, N, 2)."""
        return self.positions - self.reference

    @cached_property
    def positions_in_pixels(self) -> Tensor:
        """``positions`` in pixels (y, x) of the original images, (B, g, N, 2); float64, CPU."""
        return self.in_pixels(self.positions)

    @cached_property
    def reference_in_pixels(self) -> Tensor:
        """``reference`` in pixels (y, x) of the original images, (B, g, N, 2); float64, CPU."""
        return self.in_pixels(self.reference)

    def in_pixels(self, positions: Tensor) -> Tensor:
        """Map normalized positions, (B, ..., 2), to pixels (y, x) of the original images."""
        last = torch.tensor(self.size, dtype=torch.float64) - 1
        return self.geometry.to_pixels((positions.cpu().double() + 1) / 2 * last)

    def attention(self, queries: Queries) -> Tensor:
        """Attention weights of some queries.

        Args:
            queries: (Q, 2), row and column of cells of the block's map.

        Returns:
            (B, heads, Q, N); the weights of a query sum to 1.

        Raises:
            ValueError: A query is outside of the map.
        """
        return self._weights(*self._check(queries, self.q.device))

    def received(self, inside: bool = False) -> Tensor:
        """Attention that each sample receives, summed over the queries: (B, heads, N).

        Args:
            inside: Leave out queries in the padding of an image.
        """
        height, width = self.size
        numbers = torch.arange(height * width, device=self.q.device)
        valid = self.geometry.inside().flatten(1).to(self.q) if inside else None
        total = torch.zeros_like(self.k[..., 0])
        for some in numbers.split(max(1, MAX_LOGITS // max(1, self.k[..., 0].numel()))):
            weights = self._weights(some // width, some % width)
            if valid is not None:
                weights = weights * valid[:, None, some, None]
            total += weights.sum(2)
        return total

    def _weights(self, rows: Tensor, columns: Tensor) -> Tensor:
        q = self.q[:, :, rows, columns]
        logits = (q * q.shape[-1] ** -0.5) @ self.k.mT
        if self.bias is not None:
            queries = torch.stack([self.query_y[rows], self.query_x[columns]], -1)
            numbers = rows * self.size[1] + columns
            logits = logits + self.bias(self.positions, queries, numbers, self.size)
        return logits.softmax(-1)


@dataclass(frozen=True)
class NeighborhoodBlock(Block):
    """A block with neighborhood attention: every query attends to the K x K cells around it."""

    q: Tensor
    """Queries, (B, heads, H', W', d): of the map, padded to at least K x K, in float32 or 64."""

    k: Tensor
    """Keys, in the shape of ``q``."""

    table: Tensor
    """Bias tables, (heads, 2 K - 1, 2 K - 1)."""

    @property
    def heads(self) -> int:
        return self.q.shape[1]

    @property
    def kernel_size(self) -> int:
        """Side K of the neighborhood."""
        return (self.table.shape[-1] + 1) // 2

    def neighbors(self, queries: Queries) -> Tensor:
        """Row and column of the K x K neighbors of each query (Q, 2): (Q, K, K, 2).

        In a map smaller than K, neighbors beyond its end are padding.
        """
        rows, columns = self._windows(*self._check(queries, self.q.device))
        kernel = self.kernel_size
        grid = rows[:, :, None].expand(-1, -1, kernel), columns[:, None].expand(-1, kernel, -1)
        return torch.stack(grid, -1)

    def attention(self, queries: Queries) -> Tensor:
        """Attention weights of some queries (Q, 2), row and column: (B, heads, Q, K, K).

        The weights of a query sum to 1. Which cells they belong to, :meth:`neighbors` says.

        Raises:
            ValueError: A query is outside of the map.
        """
        y, x = self._check(queries, self.q.device)
        rows, columns = self._windows(y, x)
        keys = self.k[:, :, rows[:, :, None], columns[:, None]]  # (B, heads, Q, K, K, d)
        q = self.q[:, :, y, x] * self.q.shape[-1] ** -0.5
        dy, dx = (
            cells - query[:, None] + self.kernel_size - 1
            for cells, query in ((rows, y), (columns, x))
        )
        logits = torch.einsum('bhqd,bhqijd->bhqij', q, keys)
        logits = logits + self.table[:, dy[:, :, None], dx[:, None]]
        return logits.flatten(-2).softmax(-1).view(logits.shape)

    def _windows(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (Q, K) and columns (Q, K) of the windows."""
        kernel = self.kernel_size
        steps = torch.arange(kernel, device=y.device)
        rows, columns = (
            (query - kernel // 2).clamp(0, length - kernel)[:, None] + steps
            for query, length in zip((y, x), self.q.shape[2:4])
        )
        return rows, columns

"""A block of a trace as bytes for the page, in one of two forms.

``weights``: the attention of every query as 16-bit numbers that are proportional to it.
``products``, for large maps: q, k and bias table in half precision, positions in float32; the page
computes the row of a query itself.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..bias import TableBias
from ..blocks import MAX_LOGITS, Block, DeformableBlock, NeighborhoodBlock

CODES = 2**16 - 1
LEVEL = 6
"""zlib's compression level."""

Attentive = DeformableBlock | NeighborhoodBlock


def form_of(block: Attentive) -> tuple[str, int]:
    """The form in which the page gets a block, and its bytes before compression."""
    height, width = block.size
    queries, q = height * width, block.q[0]
    if isinstance(block, NeighborhoodBlock):
        return 'weights', 2 * queries * block.heads * block.kernel_size**2
    samples = block.positions.shape[2]
    common = 4 * (block.positions[0].numel() + 2 * samples + block.heads * samples)
    weights = 2 * queries * block.heads * samples
    if block.bias is not None and not isinstance(block.bias, TableBias):
        return 'weights', common + weights  # the page has no formula of such a bias
    table = block.bias.table.numel() if block.bias else 0
    products = 2 * (q.numel() + block.k[0].numel() + table) + 4 * (height + width)
    if weights <= 2 * products:  # the exact row at once, for any bias
        return 'weights', common + weights
    return 'products', common + products


def describe(block: Attentive, image: int) -> dict[str, Any]:
    """What the page must know of a block beside its bytes."""
    cells = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    first, second = block.geometry.to_pixels(cells.expand(len(block.geometry.images), -1, -1))[
        image
    ].tolist()
    inside = block.geometry.inside()[image]
    info: dict[str, Any] = dict(
        name=block.name,
        stage=block.stage,
        mixer=block.mixer,
        size=block.size,
        heads=block.heads,
        # A row or column i of the map is at first + i * step, in pixels of the original image.
        first=first,
        step=[b - a for a, b in zip(first, second)],
        inside=[int(inside.any(1).sum()), int(inside.any(0).sum())],
    )
    if isinstance(block, DeformableBlock):
        info.update(groups=block.groups, samples=block.positions.shape[2], grid=block.grid)
    else:
        kernel = block.kernel_size
        info.update(groups=1, samples=kernel**2, kernel=kernel, padded=block.q.shape[2:4])
    return info


def pack(block: Attentive, image: int) -> tuple[dict[str, Any], bytes]:
    """Describe a block, and compress its arrays; ``parts`` says where each begins.

    Returns:
        The description, and the arrays one after the other, compressed by zlib.
    """
    form, _ = form_of(block)
    arrays: dict[str, NDArray] = {}
    info = describe(block, image)
    if isinstance(block, DeformableBlock):
        received = block.received(inside=True)[image]
        arrays['reference'] = _array(block.reference[image, 0], np.float32)
        arrays['positions'] = _array(block.positions[image], np.float32)
        arrays['received'] = _array(received / received.mean(1, keepdim=True), np.float32)
        if form == 'products':
            q = block.q[image] * block.q.shape[-1] ** -0.5  # (heads, H, W, d)
            arrays['q'] = _array(q.permute(1, 2, 0, 3), np.float16)
            arrays['k'] = _array(block.k[image], np.float16)
            arrays['query_y'] = _array(block.query_y, np.float32)
            arrays['query_x'] = _array(block.query_x, np.float32)
            info['channels'] = block.q.shape[-1]
            if isinstance(block.bias, TableBias):
                arrays['table'] = _array(block.bias.table, np.float16)
                info['table_size'] = block.bias.table.shape[1:]
    if form == 'weights':
        arrays['weights'] = np.concatenate(list(_codes(block, image)))
    parts, chunks, offset = {}, [], 0
    for name, array in arrays.items():
        data = array.tobytes()
        data += bytes(-len(data) % 4)
        parts[name] = [array.dtype.name, offset, array.size]
        chunks.append(data)
        offset += len(data)
    return info | dict(parts=parts), zlib.compress(b''.join(chunks), LEVEL)


def _codes(block: Attentive, image: int) -> Iterator[NDArray[np.uint16]]:
    """Weights of all queries, some at a time: (Q, heads, N), relative to the largest of a row."""
    height, width = block.size
    cells = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    row = block.k.shape[-2]  # logits of a query and head
    if isinstance(block, NeighborhoodBlock):
        row = block.kernel_size**2 * block.q.shape[-1]  # its keys are gathered
    for some in cells.split(max(1, MAX_LOGITS // (len(block.q) * block.heads * row))):
        weights = block.attention(some)[image].flatten(2)  # (heads, Q, N)
        weights = weights / weights.amax(-1, keepdim=True).clamp(min=1e-30) * CODES
        yield _array(weights.round().transpose(0, 1), np.uint16)


def _array(x: Tensor, dtype: type) -> NDArray:
    return np.ascontiguousarray(x.detach().cpu().numpy()).astype(dtype)


def order(blocks: list[Block], first: list[str]) -> list[Attentive]:
    """Blocks with attention in the order in which they are to be kept.

    Those of ``first``; the last deformable block of each stage, from the last stage; the other
    deformable blocks, from the last; neighborhood blocks in the same way.
    """
    attentive: list[Attentive] = [
        b for b in reversed(blocks) if isinstance(b, DeformableBlock | NeighborhoodBlock)
    ]
    last: dict[tuple[int, type], str] = {}
    for block in attentive:
        last.setdefault((block.stage, type(block)), block.name)

    def rank(block: Attentive) -> tuple[bool, bool, bool]:
        return (
            block.name not in first,
            isinstance(block, NeighborhoodBlock),
            block.name not in last.values(),
        )

    return sorted(attentive, key=rank)

"""Triton kernels of neighborhood attention; the operator built of them is in ``fused``.

A head of an image is a *plane*, numbered z = b * h + head. A program has a square tile of a plane
and visits the window entries one after the other: in each step every query of the tile meets one
key. That is K * K steps of TILE * TILE products of length d and no masked logits; a matrix product
with all keys that a tile reaches would make four times as many for K = 7 and mask the rest. The
softmax is online, and the backward pass rebuilds the weights from the log-sum-exp of each query.

For keys, values and bias the program has a tile of keys instead and visits the displacements to
the queries: in each step every key meets the one query at that displacement, if that query's window
has the key. A displacement is an entry of the bias table, so the sum of the step's logit gradients
is that entry's gradient from this tile. Nothing is atomic, and every sum has a fixed order.
"""

import triton
import triton.language as tl

from ..kernels import INTERPRETED, load_rows, store_rows

TILE = 8
"""Side of the tiles of a map."""

# Sizes that change from image to image must not make new variants of a kernel.
SIZES = ['heads', 'height', 'width']


def _configs() -> list[triton.Config]:
    if INTERPRETED.value:
        return [triton.Config({})]
    return [triton.Config({}, num_warps=warps) for warps in (2, 4, 8)]


@triton.jit
def _tile(height, width, TILE: tl.constexpr):
    """This program's plane and, for each of its positions: y, x and whether on the map."""
    columns = tl.cdiv(width, TILE)
    tiles = tl.cdiv(height, TILE) * columns
    tile = tl.program_id(0) % tiles
    position = tl.arange(0, TILE * TILE)
    y = tile // columns * TILE + position // TILE
    x = tile % columns * TILE + position % TILE
    return (tl.program_id(0) // tiles).to(tl.int64), y, x, (y < height) & (x < width)


@triton.jit
def _first_key(query, length, K: tl.constexpr):
    """First key of the queries' windows on an axis; a key of the map for any query."""
    return tl.minimum(tl.maximum(query - K // 2, 0), length - K)


@triton.jit
def _first_query(key, K: tl.constexpr):
    """First query on an axis whose window has the key."""
    return tl.where(key < K, 0, key - K // 2)


@triton.jit
def _last_query(key, length, K: tl.constexpr):
    """Last query on an axis whose window has the key."""
    return tl.where(key >= length - K, length - 1, key + K // 2)


@triton.jit
def _bias_index(key_y, key_x, query_y, query_x, K: tl.constexpr):
    """Entry of a head's bias table."""
    return (key_y - query_y + K - 1) * (2 * K - 1) + key_x - query_x + K - 1


@triton.autotune(_configs(), key=['D', 'K'])
@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q, k, v, bias, out, lse, heads, height, width,
    D: tl.constexpr, BLOCK_D: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of a tile of queries; grid: planes x tiles."""
    z, y, x, inside = _tile(height, width, TILE)
    plane = z * height * width
    bias += (z % heads) * ((2 * K - 1) * (2 * K - 1))
    scale: tl.constexpr = D**-0.5
    q_tile = load_rows(q + plane * D, y * width + x, inside, D, BLOCK_D).to(tl.float32) * scale
    top, left = _first_key(y, height, K), _first_key(x, width, K)

    largest = tl.full([TILE * TILE], float('-inf'), tl.float32)
    total = tl.zeros([TILE * TILE], tl.float32)
    sums = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)
    for step in range(K * K):
        key_y, key_x = top + step // K, left + step % K
        key = key_y * width + key_x
        k_tile = load_rows(k + plane * D, key, inside, D, BLOCK_D).to(tl.float32)
        v_tile = load_rows(v + plane * D, key, inside, D, BLOCK_D).to(tl.float32)
        entry = bias + _bias_index(key_y, key_x, y, x, K)
        logits = tl.sum(q_tile * k_tile, 1) + tl.load(entry, mask=inside, other=0.0)
        new_largest = tl.maximum(largest, logits)
        shrink = tl.exp(largest - new_largest)
        weights = tl.exp(logits - new_largest)
        total = total * shrink + weights
        sums = sums * shrink[:, None] + weights[:, None] * v_tile
        largest = new_largest
    store_rows(out + plane * D, y * width + x, inside, sums / total[:, None], D, BLOCK_D)
    tl.store(lse + plane + y * width + x, largest + tl.log(total), mask=inside)


@triton.autotune(_configs(), key=['D', 'K'])
@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(
    q, k, v, bias, out, lse, grad_out, grad_q, delta, heads, height, width,
    D: tl.constexpr, BLOCK_D: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries; grid: planes x tiles.

    Also writes ``delta`` = sum(out * grad_out) of each query, which the softmax's gradient takes
    off.
    """
    z, y, x, inside = _tile(height, width, TILE)
    plane = z * height * width
    query = y * width + x
    bias += (z % heads) * ((2 * K - 1) * (2 * K - 1))
    scale: tl.constexpr = D**-0.5
    q_tile = load_rows(q + plane * D, query, inside, D, BLOCK_D).to(tl.float32) * scale
    grad_tile = load_rows(grad_out + plane * D, query, inside, D, BLOCK_D).to(tl.float32)
    out_tile = load_rows(out + plane * D, query, inside, D, BLOCK_D).to(tl.float32)
    delta_tile = tl.sum(out_tile * grad_tile, 1)
    tl.store(delta + plane + query, delta_tile, mask=inside)
    lse_tile = tl.load(lse + plane + query, mask=inside, other=float('inf'))
    top, left = _first_key(y, height, K), _first_key(x, width, K)

    sums = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)
    for step in range(K * K):
        key_y, key_x = top + step // K, left + step % K
        key = key_y * width + key_x
        k_tile = load_rows(k + plane * D, key, inside, D, BLOCK_D).to(tl.float32)
        v_tile = load_rows(v + plane * D, key, inside, D, BLOCK_D).to(tl.float32)
        entry = bias + _bias_index(key_y, key_x, y, x, K)
        logits = tl.sum(q_tile * k_tile, 1) + tl.load(entry, mask=inside, other=0.0)
        weights = tl.exp(logits - lse_tile)
        grad = weights * (tl.sum(grad_tile * v_tile, 1) - delta_tile)
        sums += grad[:, None] * k_tile
    store_rows(grad_q + plane * D, query, inside, sums * scale, D, BLOCK_D)


@triton.autotune(_configs(), key=['D', 'K'])
@triton.jit(do_not_specialize=SIZES)
def key_gradient_kernel(
    q, k, v, bias, lse, delta, grad_out, grad_k, grad_v, grad_bias, heads, height, width,
    D: tl.constexpr, BLOCK_D: tl.constexpr, K: tl.constexpr, ENTRIES: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and their values, and the tile's share of the bias's.

    Grid: planes x tiles; ``grad_bias`` is (planes, tiles, ENTRIES) in float32, of which the first
    (2 K - 1)^2 are the table's, to be summed over images and tiles.
    """
    z, y, x, inside = _tile(height, width, TILE)
    plane = z * height * width
    key = y * width + x
    bias += (z % heads) * ((2 * K - 1) * (2 * K - 1))
    scale: tl.constexpr = D**-0.5
    k_tile = load_rows(k + plane * D, key, inside, D, BLOCK_D).to(tl.float32) * scale
    v_tile = load_rows(v + plane * D, key, inside, D, BLOCK_D).to(tl.float32)
    top, bottom = _first_query(y, K), _last_query(y, height, K)
    left, right = _first_query(x, K), _last_query(x, width, K)
    # The displacements at which any key of the tile has a query.
    first_y = tl.min(tl.where(inside, top - y, K), 0)
    first_x = tl.min(tl.where(inside, left - x, K), 0)
    rows = tl.max(tl.where(inside, bottom - y, -K), 0) - first_y + 1
    columns = tl.max(tl.where(inside, right - x, -K), 0) - first_x + 1

    k_sums = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)
    v_sums = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)
    entries = tl.arange(0, ENTRIES)
    bias_sums = tl.zeros([ENTRIES], tl.float32)
    for step in range(rows * columns):
        dy, dx = first_y + step // columns, first_x + step % columns
        meets = inside & (y + dy >= top) & (y + dy <= bottom)
        meets = meets & (x + dx >= left) & (x + dx <= right)
        query = (y + dy) * width + x + dx
        q_tile = load_rows(q + plane * D, query, meets, D, BLOCK_D).to(tl.float32)
        grad_tile = load_rows(grad_out + plane * D, query, meets, D, BLOCK_D).to(tl.float32)
        lse_tile = tl.load(lse + plane + query, mask=meets, other=float('inf'))
        delta_tile = tl.load(delta + plane + query, mask=meets, other=0.0)
        entry = _bias_index(0, 0, dy, dx, K)
        logits = tl.sum(q_tile * k_tile, 1) + tl.load(bias + entry)
        weights = tl.exp(logits - lse_tile)
        v_sums += weights[:, None] * grad_tile
        grad = weights * (tl.sum(grad_tile * v_tile, 1) - delta_tile)
        k_sums += grad[:, None] * q_tile
        bias_sums += tl.where(entries == entry, tl.sum(grad, 0), 0.0)
    store_rows(grad_k + plane * D, key, inside, k_sums * scale, D, BLOCK_D)
    store_rows(grad_v + plane * D, key, inside, v_sums, D, BLOCK_D)
    tl.store(grad_bias + tl.program_id(0).to(tl.int64) * ENTRIES + entries, bias_sums)

"""Triton kernels of neighborhood attention, launched by ``triton.py``.

A (batch, head) pair is numbered z = b * heads + h. A program has a square tile of the map of one
pair and loops over the window entries: in each step every query of the tile meets one key. That is
K * K steps of TILE * TILE dot products of length d and no masked logits; a matrix product with all
keys in reach of the tile would compute four times as many for K = 7 and mask the rest. The softmax
is online, and the backward pass recomputes the weights from the log-sum-exp of each query.

For the gradients of keys, values and bias a program has a tile of keys instead and loops over the
displacements to the queries: in each step every key meets the one query at that displacement, if
the window of that query has the key. A displacement is an entry of the bias table, so the sum of
the logit gradients of a step is the gradient of that entry from this tile. Nothing is atomic, and
every sum has a fixed order.
"""

import triton
import triton.language as tl

from ..triton.kernels import INTERPRETED, load_rows, store_rows

# Sizes vary from image to image: specialising on them would recompile the kernels.
SIZES = ['heads', 'height', 'width']


def _configs() -> list[triton.Config]:
    if INTERPRETED.value:
        return [triton.Config({})]
    return [triton.Config({}, num_warps=warps) for warps in (2, 4, 8)]


@triton.jit
def _tile(height, width, TILE: tl.constexpr):
    """Pair of this program, and y, x and validity of each position of its tile."""
    columns = tl.cdiv(width, TILE)
    tiles = tl.cdiv(height, TILE) * columns
    tile = tl.program_id(0) % tiles
    position = tl.arange(0, TILE * TILE)
    y = tile // columns * TILE + position // TILE
    x = tile % columns * TILE + position % TILE
    return (tl.program_id(0) // tiles).to(tl.int64), y, x, (y < height) & (x < width)


@triton.jit
def _first_key(query, length, K: tl.constexpr):
    """First key of the window of a query on an axis; always on the map."""
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
    """Index into the bias table of a head."""
    return (key_y - query_y + K - 1) * (2 * K - 1) + key_x - query_x + K - 1


@triton.autotune(_configs(), key=['D', 'K'])
@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q, k, v, bias, out, lse, heads, height, width,
    D: tl.constexpr, BLOCK_D: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of a tile of queries; grid: pairs x tiles."""
    z, y, x, valid = _tile(height, width, TILE)
    offset = z * height * width
    bias += (z % heads) * ((2 * K - 1) * (2 * K - 1))
    scale: tl.constexpr = D**-0.5
    q_tile = load_rows(q + offset * D, y * width + x, valid, D, BLOCK_D).to(tl.float32) * scale
    top, left = _first_key(y, height, K), _first_key(x, width, K)

    row_max = tl.full([TILE * TILE], float('-inf'), tl.float32)
    row_sum = tl.zeros([TILE * TILE], tl.float32)
    sums = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)
    for step in range(K * K):
        key_y, key_x = top + step // K, left + step % K
        key = key_y * width + key_x
        k_tile = load_rows(k + offset * D, key, valid, D, BLOCK_D).to(tl.float32)
        v_tile = load_rows(v + offset * D, key, valid, D, BLOCK_D).to(tl.float32)
        entry = bias + _bias_index(key_y, key_x, y, x, K)
        logits = tl.sum(q_tile * k_tile, 1) + tl.load(entry, mask=valid, other=0.0)
        new_max = tl.maximum(row_max, logits)
        rescale = tl.exp(row_max - new_max)
        weights = tl.exp(logits - new_max)
        row_sum = row_sum * rescale + weights
        sums = sums * rescale[:, None] + weights[:, None] * v_tile
        row_max = new_max
    store_rows(out + offset * D, y * width + x, valid, sums / row_sum[:, None], D, BLOCK_D)
    tl.store(lse + offset + y * width + x, row_max + tl.log(row_sum), mask=valid)


@triton.autotune(_configs(), key=['D', 'K'])
@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(
    q, k, v, bias, out, lse, grad_out, grad_q, delta, heads, height, width,
    D: tl.constexpr, BLOCK_D: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries; grid: pairs x tiles.

    Also writes ``delta`` = sum(out * grad_out) per query, which the gradient of the softmax
    subtracts.
    """
    z, y, x, valid = _tile(height, width, TILE)
    offset = z * height * width
    query = y * width + x
    bias += (z % heads) * ((2 * K - 1) * (2 * K - 1))
    scale: tl.constexpr = D**-0.5
    q_tile = load_rows(q + offset * D, query, valid, D, BLOCK_D).to(tl.float32) * scale
    grad_tile = load_rows(grad_out + offset * D, query, valid, D, BLOCK_D).to(tl.float32)
    out_tile = load_rows(out + offset * D, query, valid, D, BLOCK_D).to(tl.float32)
    delta_tile = tl.sum(out_tile * grad_tile, 1)
    tl.store(delta + offset + query, delta_tile, mask=valid)
    lse_tile = tl.load(lse + offset + query, mask=valid, other=float('inf'))
    top, left = _first_key(y, height, K), _first_key(x, width, K)

    sums = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)
    for step in range(K * K):
        key_y, key_x = top + step // K, left + step % K
        key = key_y * width + key_x
        k_tile = load_rows(k + offset * D, key, valid, D, BLOCK_D).to(tl.float32)
        v_tile = load_rows(v + offset * D, key, valid, D, BLOCK_D).to(tl.float32)
        entry = bias + _bias_index(key_y, key_x, y, x, K)
        logits = tl.sum(q_tile * k_tile, 1) + tl.load(entry, mask=valid, other=0.0)
        weights = tl.exp(logits - lse_tile)
        grad = weights * (tl.sum(grad_tile * v_tile, 1) - delta_tile)
        sums += grad[:, None] * k_tile
    store_rows(grad_q + offset * D, query, valid, sums * scale, D, BLOCK_D)


@triton.autotune(_configs(), key=['D', 'K'])
@triton.jit(do_not_specialize=SIZES)
def key_gradient_kernel(
    q, k, v, bias, lse, delta, grad_out, grad_k, grad_v, grad_bias, heads, height, width,
    D: tl.constexpr, BLOCK_D: tl.constexpr, K: tl.constexpr, ENTRIES: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, and their part of the gradient of the bias.

    Grid: pairs x tiles; ``grad_bias`` is (pairs, tiles, ENTRIES) in float32, of which the first
    (2 K - 1)^2 belong to the table, to be summed over images and tiles.
    """
    z, y, x, valid = _tile(height, width, TILE)
    offset = z * height * width
    key = y * width + x
    bias += (z % heads) * ((2 * K - 1) * (2 * K - 1))
    scale: tl.constexpr = D**-0.5
    k_tile = load_rows(k + offset * D, key, valid, D, BLOCK_D).to(tl.float32) * scale
    v_tile = load_rows(v + offset * D, key, valid, D, BLOCK_D).to(tl.float32)
    top, bottom = _first_query(y, K), _last_query(y, height, K)
    left, right = _first_query(x, K), _last_query(x, width, K)
    # Range of displacements at which any key of the tile has a query.
    first_y = tl.min(tl.where(valid, top - y, K), 0)
    first_x = tl.min(tl.where(valid, left - x, K), 0)
    rows = tl.max(tl.where(valid, bottom - y, -K), 0) - first_y + 1
    columns = tl.max(tl.where(valid, right - x, -K), 0) - first_x + 1

    k_sums = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)
    v_sums = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)
    entries = tl.arange(0, ENTRIES)
    bias_sums = tl.zeros([ENTRIES], tl.float32)
    for step in range(rows * columns):
        dy, dx = first_y + step // columns, first_x + step % columns
        meets = valid & (y + dy >= top) & (y + dy <= bottom)
        meets = meets & (x + dx >= left) & (x + dx <= right)
        query = (y + dy) * width + x + dx
        q_tile = load_rows(q + offset * D, query, meets, D, BLOCK_D).to(tl.float32)
        grad_tile = load_rows(grad_out + offset * D, query, meets, D, BLOCK_D).to(tl.float32)
        lse_tile = tl.load(lse + offset + query, mask=meets, other=float('inf'))
        delta_tile = tl.load(delta + offset + query, mask=meets, other=0.0)
        entry = _bias_index(0, 0, dy, dx, K)
        logits = tl.sum(q_tile * k_tile, 1) + tl.load(bias + entry)
        weights = tl.exp(logits - lse_tile)
        v_sums += weights[:, None] * grad_tile
        grad = weights * (tl.sum(grad_tile * v_tile, 1) - delta_tile)
        k_sums += grad[:, None] * q_tile
        bias_sums += tl.where(entries == entry, tl.sum(grad, 0), 0.0)
    store_rows(grad_k + offset * D, key, valid, k_sums * scale, D, BLOCK_D)
    store_rows(grad_v + offset * D, key, valid, v_sums, D, BLOCK_D)
    tl.store(grad_bias + tl.program_id(0).to(tl.int64) * ENTRIES + entries, bias_sums)

"""Triton kernels of deformable attention; the operator built of them is in ``fused``.

A head of an image is a *plane*, numbered z = b * h + head. Queries are numbered row by row. Logits
live in registers, a block of queries by a block of samples at a time; the softmax is online (the
running maximum rescales what was summed before), and the backward pass rebuilds the weights from
the log-sum-exp of each query.

A table is padded by one cell of zeros all around and displacements are clamped to that border, so
that no lookup needs a mask.

The gradient of the table would be four scattered additions for every pair of a query and a sample,
all into a few thousand entries. But the queries are a grid, so the bias of sample n is
``Y_n table X_n^T`` with two weights in every row of Y_n (H x rows) and X_n (W x columns), and

    grad_table = sum_n Y_n^T dS_n X_n,

dS_n being the gradients of the logits of sample n as an H x W map: matrix products, whose sum stays
in registers. For this the kernel of the queries' gradients hands over dS, one bounded slab of
queries at a time. Nothing is atomic, and every sum has a fixed order.
"""

import triton
import triton.language as tl

from ..kernels import INTERPRETED, dot, load_rows, store_rows

# Sizes that change from image to image must not make new variants of a kernel.
SIZES = ['heads', 'group_heads', 'queries', 'width', 'samples', 'rows', 'columns']


def _configs(*choices: tuple[int, int, int]) -> list[triton.Config]:
    """Blocks of queries, blocks of samples and warps to choose from.

    They compile for an H100 without spilled registers, in half precision with heads of 32. Stages
    would pass every lookup of the table through shared memory. The interpreter gets one choice,
    that makes several blocks of little.
    """
    if INTERPRETED.value:
        return [triton.Config(dict(BLOCK_M=32, BLOCK_N=16))]
    return [
        triton.Config(dict(BLOCK_M=m, BLOCK_N=n), num_warps=warps, num_stages=1)
        for m, n, warps in choices
    ]


@triton.jit
def _cell(query, sample, size):
    """Where displacements fall on an axis of the padded table of ``size`` + 2 entries.

    Returns the first of the two cells, the weight of the second, and whether the bias changes with
    the displacement there. The order of operations is grid_sample's.
    """
    at = ((query - sample) * 0.5 + 1) * ((size - 1) * 0.5)
    kept = tl.minimum(tl.maximum(at, -1.0), size.to(tl.float32))
    cell = tl.minimum(tl.floor(kept), size - 1.0)
    return cell.to(tl.int32) + 1, kept - cell, (at >= -1) & (at < size)


@triton.jit
def _bias(table, query_y, query_x, sample_y, sample_x, rows, columns):
    """Bias of pairs and its slopes along y and x, per cell; query and sample axes broadcast."""
    y, weight_y, inside_y = _cell(query_y, sample_y, rows)
    x, weight_x, inside_x = _cell(query_x, sample_x, columns)
    corner = table + y * (columns + 2) + x
    value = tl.load(corner)
    top_slope = tl.load(corner + 1) - value
    below = tl.load(corner + columns + 2)
    bottom_slope = tl.load(corner + columns + 3) - below
    top = value + weight_x * top_slope
    slope_y = below + weight_x * bottom_slope - top
    slope_x = top_slope + weight_y * (bottom_slope - top_slope)
    bias = top + weight_y * slope_y
    return bias, tl.where(inside_y, slope_y, 0.0), tl.where(inside_x, slope_x, 0.0)


@triton.jit
def _table_of(table, z, heads, rows, columns):
    """The padded table of a plane's head."""
    return table + (z % heads) * (rows + 2) * (columns + 2)


@triton.jit
def _load_queries(query_y, query_x, m, inside, width):
    """Positions of the queries, y and x."""
    y = tl.load(query_y + m // width, mask=inside, other=0.0)
    return y, tl.load(query_x + m % width, mask=inside, other=0.0)


@triton.jit
def _load_samples(positions, z, group_heads, n, inside, samples):
    """Positions of the samples of a plane's group, y and x."""
    pointers = positions + ((z // group_heads) * samples + n) * 2
    y = tl.load(pointers, mask=inside, other=0.0)
    return y, tl.load(pointers + 1, mask=inside, other=0.0)


@triton.autotune(_configs((64, 32, 4), (64, 32, 8), (128, 32, 8)), key=['D'])
@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q, k, v, positions, table, query_y, query_x, out, lse,
    heads, group_heads, queries, width, samples, rows, columns,
    D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_TABLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of a block of queries; grid: planes x blocks of queries."""
    tiles = tl.cdiv(queries, BLOCK_M)
    z = (tl.program_id(0) // tiles).to(tl.int64)
    m = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = m < queries
    scale: tl.constexpr = D**-0.5
    q_block = load_rows(q + z * queries * D, m, inside, D, BLOCK_D)
    y, x = _load_queries(query_y, query_x, m, inside, width)
    table = _table_of(table, z, heads, rows, columns)

    largest = tl.full([BLOCK_M], float('-inf'), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(0, samples, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        real = n < samples
        k_block = load_rows(k + z * samples * D, n, real, D, BLOCK_D)
        v_block = load_rows(v + z * samples * D, n, real, D, BLOCK_D)
        logits = dot(q_block, tl.trans(k_block), PRECISION) * scale
        if HAS_TABLE:
            n_y, n_x = _load_samples(positions, z, group_heads, n, real, samples)
            bias, _, _ = _bias(table, y[:, None], x[:, None], n_y[None], n_x[None], rows, columns)
            logits += bias
        logits = tl.where(real[None], logits, float('-inf'))
        new_largest = tl.maximum(largest, tl.max(logits, 1))
        shrink = tl.exp(largest - new_largest)
        weights = tl.exp(logits - new_largest[:, None])
        total = total * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None] + dot(weights.to(v_block.dtype), v_block, PRECISION)
        largest = new_largest
    store_rows(out + z * queries * D, m, inside, sums / total[:, None], D, BLOCK_D)
    tl.store(lse + z * queries + m, largest + tl.log(total), mask=inside)


@triton.autotune(_configs((64, 32, 4), (64, 32, 8), (128, 32, 8)), key=['D'])
@triton.jit(do_not_specialize=[*SIZES, 'first_plane', 'first_query', 'slab'])
def query_gradient_kernel(
    q, k, v, positions, table, query_y, query_x, out, lse, grad_out,
    grad_q, delta, grad_logits,
    heads, group_heads, queries, width, samples, rows, columns,
    first_plane, first_query, slab,
    D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_TABLE: tl.constexpr, STORE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries; grid: planes x blocks of the ``slab`` queries of a slab.

    Also writes ``delta`` = sum(out * grad_out) of each query, which the softmax's gradient takes
    off, and, if STORE, the gradients of the logits as (planes of the slab, samples, slab).
    """
    tiles = tl.cdiv(slab, BLOCK_M)
    local_z = (tl.program_id(0) // tiles).to(tl.int64)
    z = local_z + first_plane
    local_m = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = local_m < slab
    m = local_m + first_query
    scale: tl.constexpr = D**-0.5
    plane = z * queries * D
    q_block = load_rows(q + plane, m, inside, D, BLOCK_D)
    grad_block = load_rows(grad_out + plane, m, inside, D, BLOCK_D)
    out_block = load_rows(out + plane, m, inside, D, BLOCK_D)
    delta_block = tl.sum(out_block.to(tl.float32) * grad_block.to(tl.float32), 1)
    tl.store(delta + z * queries + m, delta_block, mask=inside)
    lse_block = tl.load(lse + z * queries + m, mask=inside, other=float('inf'))
    y, x = _load_queries(query_y, query_x, m, inside, width)
    table = _table_of(table, z, heads, rows, columns)

    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(0, samples, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        real = n < samples
        k_block = load_rows(k + z * samples * D, n, real, D, BLOCK_D)
        v_block = load_rows(v + z * samples * D, n, real, D, BLOCK_D)
        logits = dot(q_block, tl.trans(k_block), PRECISION) * scale
        if HAS_TABLE:
            n_y, n_x = _load_samples(positions, z, group_heads, n, real, samples)
            bias, _, _ = _bias(table, y[:, None], x[:, None], n_y[None], n_x[None], rows, columns)
            logits += bias
        # Samples beyond the last: without a bound their weights could overflow.
        weights = tl.where(real[None], tl.exp(logits - lse_block[:, None]), 0.0)
        grad_weights = dot(grad_block, tl.trans(v_block), PRECISION)
        grad = (weights * (grad_weights - delta_block[:, None])).to(k_block.dtype)
        sums += dot(grad, k_block, PRECISION)
        if STORE:
            pointers = grad_logits + (local_z * samples + n[None]) * slab + local_m[:, None]
            tl.store(pointers, grad, mask=inside[:, None] & real[None])
    store_rows(grad_q + plane, m, inside, sums * scale, D, BLOCK_D)


@triton.autotune(_configs((32, 64, 4), (32, 64, 8), (32, 32, 4)), key=['D'])
@triton.jit(do_not_specialize=[*SIZES, 'planes', 'splits'])
def sample_gradient_kernel(
    q, k, v, positions, table, query_y, query_x, lse, delta, grad_out,
    grad_k, grad_v, grad_positions,
    heads, group_heads, queries, width, samples, rows, columns, planes, splits,
    D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_TABLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of samples from a share of the queries.

    Grid: shares x planes x blocks of samples. The gradients are (shares, planes, samples, D or 2)
    in float32, to be summed over the shares, those of positions over the heads of a group too.
    """
    tiles = tl.cdiv(samples, BLOCK_N)
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    real = n < samples
    share_and_plane = (tl.program_id(0) // tiles).to(tl.int64)
    z = share_and_plane % planes
    per_share = tl.cdiv(tl.cdiv(queries, BLOCK_M), splits)
    begin = (share_and_plane // planes).to(tl.int32) * per_share * BLOCK_M
    end = tl.minimum(begin + per_share * BLOCK_M, queries)
    scale: tl.constexpr = D**-0.5
    k_block = load_rows(k + z * samples * D, n, real, D, BLOCK_D)
    v_block = load_rows(v + z * samples * D, n, real, D, BLOCK_D)
    n_y, n_x = _load_samples(positions, z, group_heads, n, real, samples)
    table = _table_of(table, z, heads, rows, columns)

    k_sums = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    v_sums = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    y_sums = tl.zeros([BLOCK_N], tl.float32)
    x_sums = tl.zeros([BLOCK_N], tl.float32)
    for first in range(begin, end, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        inside = m < end
        q_block = load_rows(q + z * queries * D, m, inside, D, BLOCK_D)
        grad_block = load_rows(grad_out + z * queries * D, m, inside, D, BLOCK_D)
        lse_block = tl.load(lse + z * queries + m, mask=inside, other=float('inf'))
        delta_block = tl.load(delta + z * queries + m, mask=inside, other=0.0)
        logits = dot(k_block, tl.trans(q_block), PRECISION) * scale  # samples x queries
        if HAS_TABLE:
            y, x = _load_queries(query_y, query_x, m, inside, width)
            bias, slope_y, slope_x = _bias(
                table, y[None], x[None], n_y[:, None], n_x[:, None], rows, columns
            )
            logits += bias
        weights = tl.exp(logits - lse_block[None])
        v_sums += dot(weights.to(grad_block.dtype), grad_block, PRECISION)
        grad_weights = dot(v_block, tl.trans(grad_block), PRECISION)
        grad = weights * (grad_weights - delta_block[None])
        k_sums += dot(grad.to(q_block.dtype), q_block, PRECISION)
        if HAS_TABLE:
            y_sums += tl.sum(grad * slope_y, 1)
            x_sums += tl.sum(grad * slope_x, 1)
    store_rows(grad_k + share_and_plane * samples * D, n, real, k_sums * scale, D, BLOCK_D)
    store_rows(grad_v + share_and_plane * samples * D, n, real, v_sums, D, BLOCK_D)
    # A step of a position moves the displacement back, by half as many halves of the table.
    pointers = grad_positions + (share_and_plane * samples + n) * 2
    tl.store(pointers, y_sums * (1 - rows) * 0.25, mask=real)
    tl.store(pointers + 1, x_sums * (1 - columns) * 0.25, mask=real)


@triton.jit
def _axis_weights(query, sample, entries, size):
    """Weights of the table's entries for a sample's displacements; the axes broadcast."""
    at = ((query - sample) * 0.5 + 1) * ((size - 1) * 0.5)
    return tl.maximum(1 - tl.abs(at - entries), 0.0)


@triton.jit(do_not_specialize=[*SIZES, 'first_image', 'images', 'first_row', 'slab_rows', 'splits'])
def table_gradient_kernel(
    grad_logits, positions, query_y, query_x, grad_table,
    heads, group_heads, queries, width, samples, rows, columns,
    first_image, images, first_row, slab_rows, splits,
    PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Adds a tile of ``sum_n Y_n^T dS_n X_n`` over a share of the samples of a slab.

    Grid: shares x heads x tiles of the table; a slab is whole images, or rows of one. The
    gradients are (shares, heads, rows, columns) in float32, to be summed over the shares.
    """
    row_tiles = tl.cdiv(rows, BLOCK_T)
    tiles = row_tiles * tl.cdiv(columns, BLOCK_T)
    tile = tl.program_id(0) % tiles
    share = tl.program_id(0) // tiles // heads
    head = tl.program_id(0) // tiles % heads
    i = tile % row_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    j = tile // row_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    grad_table += (tl.program_id(0) // tiles).to(tl.int64) * rows * columns
    pointers = grad_table + i[:, None] * columns + j[None]
    real = (i < rows)[:, None] & (j < columns)[None]

    sums = tl.load(pointers, mask=real, other=0.0)
    for item in range(share, images * samples, splits):
        n = item % samples
        local_z = (item // samples).to(tl.int64) * heads + head
        z = local_z + first_image.to(tl.int64) * heads
        sample = positions + ((z // group_heads) * samples + n) * 2
        sample_y = tl.load(sample)
        sample_x = tl.load(sample + 1)
        grads = grad_logits + (local_z * samples + n) * slab_rows * width
        for first_y in range(0, slab_rows, BLOCK_Q):
            y = first_y + tl.arange(0, BLOCK_Q)
            y_inside = y < slab_rows
            query = tl.load(query_y + first_row + y, mask=y_inside, other=0.0)
            weights_y = _axis_weights(query[None], sample_y, i[:, None], rows)
            if tl.max(tl.max(weights_y, 1), 0) > 0:  # half of the table, at most, is in reach
                along_x = tl.zeros([BLOCK_Q, BLOCK_T], tl.float32)
                for first_x in range(0, width, BLOCK_Q):
                    x = first_x + tl.arange(0, BLOCK_Q)
                    x_inside = x < width
                    query = tl.load(query_x + x, mask=x_inside, other=0.0)
                    weights_x = _axis_weights(query[:, None], sample_x, j[None], columns)
                    offsets = y.to(tl.int64)[:, None] * width + x[None]
                    inside = y_inside[:, None] & x_inside[None]
                    grad = tl.load(grads + offsets, mask=inside, other=0.0)
                    along_x += dot(grad.to(tl.float32), weights_x, PRECISION)
                sums += dot(weights_y, along_x, PRECISION)
    tl.store(pointers, sums, mask=real)

"""Triton kernels of deformable attention, launched by ``triton.py``.

A (batch, head) pair is numbered z = b * heads + h, queries are numbered row by row. Logits live in
registers, one block of queries by one block of samples at a time, with an online softmax: the
running row max rescales the earlier sums. The backward pass recomputes the weights from the
log-sum-exp of each query.

Tables are padded by one cell of zeros on each side and displacements are clamped to that border, so
no lookup needs a mask.

Scattering the gradient of the table would take four atomic additions per query and sample, all into
a few thousand entries. But queries form a grid, so the bias of sample n is ``Y_n table X_n^T`` with
two weights in every row of Y_n (H x rows) and X_n (W x columns), and

    grad_table = sum_n Y_n^T dS_n X_n,

where dS_n holds the logit gradients of sample n as an H x W map: matrix products whose sum stays in
registers. The kernel of the query gradients writes dS for this, one bounded slab of queries at a
time. Nothing is atomic, and every sum has a fixed order.
"""

import triton
import triton.language as tl

from ..triton.kernels import INTERPRETED, dot, load_rows, store_rows

# Sizes vary from image to image: specialising on them would recompile the kernels.
SIZES = ['heads', 'group_heads', 'queries', 'width', 'samples', 'rows', 'columns']


def _configs(*choices: tuple[int, int, int]) -> list[triton.Config]:
    """Configurations from (queries per block, samples per block, warps).

    They compile for an H100 without register spills, in half precision with heads of 32. More than
    one stage would pass every table lookup through shared memory. The interpreter gets a single
    configuration with small blocks, so that small inputs have several.
    """
    if INTERPRETED.value:
        return [triton.Config(dict(BLOCK_M=32, BLOCK_N=16))]
    return [
        triton.Config(dict(BLOCK_M=m, BLOCK_N=n), num_warps=warps, num_stages=1)
        for m, n, warps in choices
    ]


@triton.jit
def _cell(query, sample, size):
    """Locate displacements on an axis of the padded table of ``size`` + 2 entries.

    Returns the first of the two cells, the weight of the second, and whether the bias changes with
    the displacement there. Operations are in grid_sample's order. NaN gives a weight of NaN.
    """
    at = ((query - sample) * 0.5 + 1) * ((size - 1) * 0.5)
    clamped = tl.where(at >= -1, tl.minimum(at, size.to(tl.float32)), -1.0)
    cell = tl.minimum(tl.floor(clamped), size - 1.0)
    weight = tl.where(at == at, clamped - cell, at)
    return cell.to(tl.int32) + 1, weight, (at >= -1) & (at < size)


@triton.jit
def _bias(table, query_y, query_x, sample_y, sample_x, rows, columns):
    """Bias and its slopes along y and x per cell; query and sample axes broadcast."""
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
    """Padded table of the head of pair z."""
    return table + (z % heads) * (rows + 2) * (columns + 2)


@triton.jit
def _load_queries(query_y, query_x, m, inside, width):
    """Load y and x of the queries."""
    y = tl.load(query_y + m // width, mask=inside, other=0.0)
    return y, tl.load(query_x + m % width, mask=inside, other=0.0)


@triton.jit
def _finite(position):
    """Replace infinite positions by finite ones beyond any table; keep NaN."""
    position = tl.where(position > 1e30, 1e30, position)
    return tl.where(position < -1e30, -1e30, position)


@triton.jit
def _load_samples(positions, z, group_heads, n, valid, samples):
    """Load y and x of the samples of the group of pair z."""
    pointers = positions + ((z // group_heads) * samples + n) * 2
    y = tl.load(pointers, mask=valid, other=0.0)
    return _finite(y), _finite(tl.load(pointers + 1, mask=valid, other=0.0))


@triton.autotune(_configs((64, 32, 4), (64, 32, 8), (128, 32, 8)), key=['D'])
@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q, k, v, positions, table, query_y, query_x, out, lse,
    heads, group_heads, queries, width, samples, rows, columns,
    D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_TABLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of a block of queries; grid: pairs x blocks of queries."""
    tiles = tl.cdiv(queries, BLOCK_M)
    z = (tl.program_id(0) // tiles).to(tl.int64)
    m = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = m < queries
    scale: tl.constexpr = D**-0.5
    q_block = load_rows(q + z * queries * D, m, inside, D, BLOCK_D)
    y, x = _load_queries(query_y, query_x, m, inside, width)
    table = _table_of(table, z, heads, rows, columns)

    row_max = tl.full([BLOCK_M], float('-inf'), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(0, samples, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        valid = n < samples
        k_block = load_rows(k + z * samples * D, n, valid, D, BLOCK_D)
        v_block = load_rows(v + z * samples * D, n, valid, D, BLOCK_D)
        logits = dot(q_block, tl.trans(k_block), PRECISION) * scale
        if HAS_TABLE:
            n_y, n_x = _load_samples(positions, z, group_heads, n, valid, samples)
            bias, _, _ = _bias(table, y[:, None], x[:, None], n_y[None], n_x[None], rows, columns)
            logits += bias
        logits = tl.where(valid[None], logits, float('-inf'))
        new_max = tl.maximum(row_max, tl.max(logits, 1))
        rescale = tl.exp(row_max - new_max)
        weights = tl.exp(logits - new_max[:, None])
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        sums = sums * rescale[:, None] + dot(weights.to(v_block.dtype), v_block, PRECISION)
        row_max = new_max
    store_rows(out + z * queries * D, m, inside, sums / row_sum[:, None], D, BLOCK_D)
    tl.store(lse + z * queries + m, row_max + tl.log(row_sum), mask=inside)


@triton.autotune(_configs((64, 32, 4), (64, 32, 8), (128, 32, 8)), key=['D'])
@triton.jit(do_not_specialize=[*SIZES, 'first_pair', 'first_query', 'slab'])
def query_gradient_kernel(
    q, k, v, positions, table, query_y, query_x, out, lse, grad_out,
    grad_q, delta, grad_logits,
    heads, group_heads, queries, width, samples, rows, columns,
    first_pair, first_query, slab,
    D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_TABLE: tl.constexpr, STORE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries; grid: pairs x blocks of the ``slab`` queries of a slab.

    Also writes ``delta`` = sum(out * grad_out) per query, which the gradient of the softmax
    subtracts, and, if STORE, the gradients of the logits as (pairs of the slab, samples, slab).
    """
    tiles = tl.cdiv(slab, BLOCK_M)
    local_z = (tl.program_id(0) // tiles).to(tl.int64)
    z = local_z + first_pair
    local_m = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = local_m < slab
    m = local_m + first_query
    scale: tl.constexpr = D**-0.5
    offset = z * queries * D
    q_block = load_rows(q + offset, m, inside, D, BLOCK_D)
    grad_block = load_rows(grad_out + offset, m, inside, D, BLOCK_D)
    out_block = load_rows(out + offset, m, inside, D, BLOCK_D)
    delta_block = tl.sum(out_block.to(tl.float32) * grad_block.to(tl.float32), 1)
    tl.store(delta + z * queries + m, delta_block, mask=inside)
    lse_block = tl.load(lse + z * queries + m, mask=inside, other=float('inf'))
    y, x = _load_queries(query_y, query_x, m, inside, width)
    table = _table_of(table, z, heads, rows, columns)

    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(0, samples, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        valid = n < samples
        k_block = load_rows(k + z * samples * D, n, valid, D, BLOCK_D)
        v_block = load_rows(v + z * samples * D, n, valid, D, BLOCK_D)
        logits = dot(q_block, tl.trans(k_block), PRECISION) * scale
        if HAS_TABLE:
            n_y, n_x = _load_samples(positions, z, group_heads, n, valid, samples)
            bias, _, _ = _bias(table, y[:, None], x[:, None], n_y[None], n_x[None], rows, columns)
            logits += bias
        # Mask the weights: those of samples beyond the last one could overflow.
        weights = tl.where(valid[None], tl.exp(logits - lse_block[:, None]), 0.0)
        grad_weights = dot(grad_block, tl.trans(v_block), PRECISION)
        grad = (weights * (grad_weights - delta_block[:, None])).to(k_block.dtype)
        sums += dot(grad, k_block, PRECISION)
        if STORE:
            pointers = grad_logits + (local_z * samples + n[None]) * slab + local_m[:, None]
            tl.store(pointers, grad, mask=inside[:, None] & valid[None])
    store_rows(grad_q + offset, m, inside, sums * scale, D, BLOCK_D)


@triton.autotune(_configs((32, 64, 4), (32, 64, 8), (32, 32, 4)), key=['D'])
@triton.jit(do_not_specialize=[*SIZES, 'pairs', 'splits'])
def sample_gradient_kernel(
    q, k, v, positions, table, query_y, query_x, lse, delta, grad_out,
    grad_k, grad_v, grad_positions,
    heads, group_heads, queries, width, samples, rows, columns, pairs, splits,
    D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_TABLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of samples from one split of the queries.

    Grid: splits x pairs x blocks of samples. The gradients are (splits, pairs, samples, D or 2) in
    float32, to be summed over the splits, and those of positions over the heads of a group too.
    """
    tiles = tl.cdiv(samples, BLOCK_N)
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = n < samples
    split_and_pair = (tl.program_id(0) // tiles).to(tl.int64)
    z = split_and_pair % pairs
    per_split = tl.cdiv(tl.cdiv(queries, BLOCK_M), splits)
    begin = (split_and_pair // pairs).to(tl.int32) * per_split * BLOCK_M
    end = tl.minimum(begin + per_split * BLOCK_M, queries)
    scale: tl.constexpr = D**-0.5
    k_block = load_rows(k + z * samples * D, n, valid, D, BLOCK_D)
    v_block = load_rows(v + z * samples * D, n, valid, D, BLOCK_D)
    n_y, n_x = _load_samples(positions, z, group_heads, n, valid, samples)
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
    store_rows(grad_k + split_and_pair * samples * D, n, valid, k_sums * scale, D, BLOCK_D)
    store_rows(grad_v + split_and_pair * samples * D, n, valid, v_sums, D, BLOCK_D)
    # d(cell) / d(position) = -(size - 1) / 4
    pointers = grad_positions + (split_and_pair * samples + n) * 2
    tl.store(pointers, y_sums * (1 - rows) * 0.25, mask=valid)
    tl.store(pointers + 1, x_sums * (1 - columns) * 0.25, mask=valid)


@triton.jit
def _axis_weights(query, sample, entries, size):
    """Weights of the table entries for the displacements from a sample; axes broadcast."""
    at = ((query - sample) * 0.5 + 1) * ((size - 1) * 0.5)
    return tl.maximum(1 - tl.abs(at - entries), 0.0)


@triton.jit(do_not_specialize=[*SIZES, 'first_image', 'images', 'first_row', 'slab_rows', 'splits'])
def table_gradient_kernel(
    grad_logits, positions, query_y, query_x, grad_table,
    heads, group_heads, queries, width, samples, rows, columns,
    first_image, images, first_row, slab_rows, splits,
    PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Add a tile of ``sum_n Y_n^T dS_n X_n`` over one split of the samples of a slab.

    Grid: splits x heads x tiles of the table; a slab is whole images, or rows of one. The
    gradients are (splits, heads, rows, columns) in float32, to be summed over the splits.
    """
    row_tiles = tl.cdiv(rows, BLOCK_T)
    tiles = row_tiles * tl.cdiv(columns, BLOCK_T)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles // heads
    head = tl.program_id(0) // tiles % heads
    i = tile % row_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    j = tile // row_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    grad_table += (tl.program_id(0) // tiles).to(tl.int64) * rows * columns
    pointers = grad_table + i[:, None] * columns + j[None]
    valid = (i < rows)[:, None] & (j < columns)[None]

    sums = tl.load(pointers, mask=valid, other=0.0)
    for item in range(split, images * samples, splits):
        n = item % samples
        local_z = (item // samples).to(tl.int64) * heads + head
        z = local_z + first_image.to(tl.int64) * heads
        sample = positions + ((z // group_heads) * samples + n) * 2
        sample_y = _finite(tl.load(sample))
        sample_x = _finite(tl.load(sample + 1))
        grads = grad_logits + (local_z * samples + n) * slab_rows * width
        for first_y in range(0, slab_rows, BLOCK_Q):
            y = first_y + tl.arange(0, BLOCK_Q)
            y_inside = y < slab_rows
            query = tl.load(query_y + first_row + y, mask=y_inside, other=0.0)
            weights_y = _axis_weights(query[None], sample_y, i[:, None], rows)
            if tl.max(tl.max(weights_y, 1), 0) > 0:  # at most half of the table is in reach
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
    tl.store(pointers, sums, mask=valid)

// Deformable attention on CPUs; native.py calls it.
//
// A tile is TILE_ROWS rows of LANES neighboring columns of queries of one (batch, head) pair. For a
// block of samples, the rows of the padded table that the tile reaches are blended along x once,
// giving one vector of queries per row; the bias of a sample and a row of queries is then a blend of
// two such vectors. The backward pass accumulates the gradient of those vectors and distributes it
// along x at the end of the block.
#include "../native/kernels.h"

namespace {

// Arguments of both kernels; `Arguments` in native.py mirrors it. The forward pass leaves the last
// two lines null.
struct Arguments {
    int64_t threads, head_size, batch, heads, groups, height, width, samples;
    int64_t table_rows, table_columns, splits;
    float scale;
    const float *positions, *table, *query_y, *query_x;  // table: null for no bias
    Map q, k, v, out;
    float* lse;  // log-sum-exp of the logits, (B, h, H, W)
    Map grad_out, grad_q;
    // Sums over queries: every split of the tiles of a (batch, head) pair has its own,
    // (splits, B * h, ...), zero at first.
    float *grad_k, *grad_v, *grad_positions, *grad_table;

    int64_t pairs() const { return batch * heads; }
    int64_t strips() const { return (width + LANES - 1) / LANES; }
    int64_t tiles() const { return strips() * ((height + TILE_ROWS - 1) / TILE_ROWS); }
};

constexpr float FAR = 1e30f;  // beyond any table, but finite

// Where displacements fall on a table axis of ``size`` entries, padded by one on each side.
struct Cells {
    ivec cell;  // the first of two
    vec weight, inside;

    void find(const float* query, int count, float sample, int64_t size) {
        float near[LANES];
        for (int i = 0; i < LANES; ++i) near[i] = query[std::min(i, count - 1)];
        // Infinity times (size - 1) = 0 would be NaN.
        sample = sample > FAR ? FAR : sample < -FAR ? -FAR : sample;
        vec at = ((load(near) - sample) / 2 + 1) * ((size - 1) * 0.5f);
        vec end = splat(size), clamped = at >= -1 ? (at <= end ? at : end) : splat(-1);
        // Conversion truncates towards zero: adding 2 makes it the floor.
        vec first = __builtin_convertvector(__builtin_convertvector(clamped + 2, ivec), vec) - 2;
        first = first < end - 1 ? first : end - 1;
        cell = __builtin_convertvector(first, ivec) + 1;
        weight = at == at ? clamped - first : at;  // NaN positions give NaN
        inside = at >= -1 && at < end ? splat(1) : vec{};
    }
};

// Table lookups of one sample for the queries of a tile.
struct Lookup {
    int y[TILE_ROWS];
    float weight_y[TILE_ROWS], inside_y[TILE_ROWS];
    Cells x;
    int first, last;  // padded table rows in reach
    int left;         // first of 2 * LANES table columns that hold all lanes, else -1

    void find(const Arguments& a, const float* position, int64_t y0, int rows, int64_t x0, int lanes) {
        first = INT32_MAX, last = 0;
        for (int r = 0; r < rows; r += LANES) {
            int count = std::min(LANES, rows - r);
            Cells cells;
            cells.find(a.query_y + y0 + r, count, position[0], a.table_rows);
            store(weight_y + r, cells.weight), store(inside_y + r, cells.inside);
            for (int i = 0; i < LANES; ++i) {
                y[r + i] = cells.cell[i];
                first = std::min(first, y[r + i]), last = std::max(last, y[r + i] + 1);
            }
        }
        x.find(a.query_x + x0, lanes, position[1], a.table_columns);
        for (int i = lanes; i < LANES; ++i) x.inside[i] = 0;
        int low = INT32_MAX, high = 0;
        for (int i = 0; i < LANES; ++i)
            low = std::min(low, x.cell[i]), high = std::max(high, x.cell[i]);
        left = high + 1 - low < 2 * LANES ? low : -1;
    }

    // The two entries of a padded table row around each lane.
    void entries(const float* row, vec& near, vec& far) const {
#ifdef __AVX512F__
        if (left >= 0) {
            vec low = load(row + left), high = load(row + left + LANES);
            __m512i index = (__m512i)(x.cell - left), next = (__m512i)(x.cell - left + 1);
            near = (vec)_mm512_permutex2var_ps((__m512)low, index, (__m512)high);
            far = (vec)_mm512_permutex2var_ps((__m512)low, next, (__m512)high);
            return;
        }
#endif
        float from[2][LANES];
        for (int i = 0; i < LANES; ++i)
            from[0][i] = row[x.cell[i]], from[1][i] = row[x.cell[i] + 1];
        near = load(from[0]), far = load(from[1]);
    }

    // Adds the gradient of the blended vectors, (padded table row, lane), to the padded table.
    void add_gradient(const float* blended, float* table, int64_t stride) const {
        if (left < 0) {
            for (int r = first; r <= last; ++r)
                for (int i = 0; i < LANES; ++i) {
                    float grad = blended[r * LANES + i], second = grad * x.weight[i];
                    table[r * stride + x.cell[i]] += grad - second;
                    table[r * stride + x.cell[i] + 1] += second;
                }
            return;
        }
        // As a matrix product with the weights of the entries: lanes may share an entry.
        alignas(64) float weights[LANES][2 * LANES] = {};
        for (int i = 0; i < LANES; ++i) {
            weights[i][x.cell[i] - left] = 1 - x.weight[i];
            weights[i][x.cell[i] - left + 1] = x.weight[i];
        }
        for (int r = first; r <= last; ++r) {
            float* to = table + r * stride + left;
            vec low = load(to), high = load(to + LANES);
            for (int i = 0; i < LANES; ++i) {
                low += load(weights[i]) * blended[r * LANES + i];
                high += load(weights[i] + LANES) * blended[r * LANES + i];
            }
            store(to, low), store(to + LANES, high);
        }
    }
};

// A tile of queries and the buffers of its thread.
template <int D>
struct Tile {
    const Arguments& a;
    int64_t b, h = -1, x0, y0;
    int lanes, rows;
    alignas(64) float keys[BLOCK * D], values[BLOCK * D];
    alignas(64) float queries[TILE_ROWS][D * LANES];
    alignas(64) vec logits[BLOCK];
    Lookup lookups[BLOCK];
    // The padded table of the head; two vectors can be read from any column of a row.
    int64_t table_rows, table_stride;
    std::vector<float> table;
    std::unique_ptr<float[]> blended;  // (sample, padded table row, lane)

    explicit Tile(const Arguments& a)
        : a(a), table_rows(a.table_rows + 2), table_stride(a.table_columns + 2 + 2 * LANES) {
        if (a.table) {
            table.resize(table_rows * table_stride);
            blended.reset(new float[BLOCK * table_rows * LANES]);
        }
    }

    void place(int64_t pair, int64_t tile) {
        if (a.table && h != pair % a.heads) {
            const float* from = a.table + pair % a.heads * a.table_rows * a.table_columns;
            for (int64_t r = 0; r < a.table_rows; ++r)
                std::memcpy(&table[(r + 1) * table_stride + 1], from + r * a.table_columns,
                            sizeof(float) * a.table_columns);
        }
        b = pair / a.heads, h = pair % a.heads;
        x0 = tile % a.strips() * LANES, y0 = tile / a.strips() * TILE_ROWS;
        lanes = std::min<int64_t>(LANES, a.width - x0);
        rows = std::min<int64_t>(TILE_ROWS, a.height - y0);
    }

    float* blend(int n, int row) { return &blended[(n * table_rows + row) * LANES]; }

    // Reads scaled keys, values and the blended table of a block of samples; returns their number.
    int read_samples(int64_t n0) {
        int count = std::min<int64_t>(BLOCK, a.samples - n0);
        read_keys<D>(a.k.at(b, h, n0, 0), a.k.row, count, a.scale, keys);
        read_keys<D>(a.v.at(b, h, n0, 0), a.v.row, count, 1, values);
        if (!a.table) return count;
        int64_t group = h / (a.heads / a.groups);
        const float* positions = a.positions + ((b * a.groups + group) * a.samples + n0) * 2;
        for (int n = 0; n < count; ++n) {
            Lookup& lookup = lookups[n];
            lookup.find(a, positions + 2 * n, y0, rows, x0, lanes);
            for (int r = lookup.first; r <= lookup.last; ++r) {
                vec near, far;
                lookup.entries(&table[r * table_stride], near, far);
                store(blend(n, r), near + lookup.x.weight * (far - near));
            }
        }
        return count;
    }

    void read_logits(int row, int count) {
        dot_keys<D>(keys, queries[row], count, logits);
        if (!a.table) return;
        for (int n = 0; n < count; ++n) {
            const float* at = blend(n, lookups[n].y[row]);
            vec near = load(at), far = load(at + LANES);
            logits[n] += near + lookups[n].weight_y[row] * (far - near);
        }
    }
};

template <int D>
void forward(const Arguments& a) {
    parallel(a.threads, a.pairs() * a.tiles(), [&](auto next) {
        Tile<D> tile(a);
        std::vector<float> sums(TILE_ROWS * D * LANES);
        vec row_max[TILE_ROWS], row_sum[TILE_ROWS];
        for (int64_t task; next(task);) {
            tile.place(task / a.tiles(), task % a.tiles());
            std::fill(sums.begin(), sums.end(), 0.f);
            for (int r = 0; r < tile.rows; ++r) {
                read_queries<D>(a.q.at(tile.b, tile.h, tile.y0 + r, tile.x0), a.q.column,
                                tile.lanes, tile.queries[r], nullptr);
                row_max[r] = splat(-INFINITY), row_sum[r] = vec{};
            }
            for (int64_t n = 0; n < a.samples; n += BLOCK) {
                int count = tile.read_samples(n);
                for (int r = 0; r < tile.rows; ++r) {
                    tile.read_logits(r, count);
                    online_softmax<D>(tile.logits, tile.values, count, row_max[r], row_sum[r],
                                      &sums[r * D * LANES]);
                }
            }
            for (int r = 0; r < tile.rows; ++r) {
                int64_t y = tile.y0 + r;
                write_queries<D>(&sums[r * D * LANES], 1.f / row_sum[r], tile.lanes,
                                 a.out.at(tile.b, tile.h, y, tile.x0), a.out.column);
                float* to = a.lse + (task / a.tiles() * a.height + y) * a.width + tile.x0;
                for (int lane = 0; lane < tile.lanes; ++lane)
                    to[lane] = row_max[r][lane] + std::log(row_sum[r][lane]);
            }
        }
    });
}

template <int D>
void backward(const Arguments& a) {
    parallel(a.threads, a.splits * a.pairs(), [&](auto next) {
        Tile<D> tile(a);
        std::vector<float> buffers(4 * TILE_ROWS * D * LANES);
        float* query_rows = buffers.data();
        float* grad_rows = query_rows + TILE_ROWS * D * LANES;
        float* grad_columns = grad_rows + TILE_ROWS * D * LANES;
        float* grad_queries = grad_columns + TILE_ROWS * D * LANES;
        std::unique_ptr<float[]> grad_blended(new float[BLOCK * tile.table_rows * LANES]);
        alignas(64) vec block_grad[BLOCK], lses[TILE_ROWS], deltas[TILE_ROWS];
        alignas(64) float grad_keys[BLOCK * D], grad_values[BLOCK * D];
        std::vector<float> padded(tile.table.size());
        for (int64_t task; next(task);) {
            int64_t split = task / a.pairs(), pair = task % a.pairs();
            float* grad_k = a.grad_k + task * a.samples * D;
            float* grad_v = a.grad_v + task * a.samples * D;
            float* grad_positions = a.grad_positions + task * a.samples * 2;
            float* grad_table = a.grad_table + task * a.table_rows * a.table_columns;
            std::fill(padded.begin(), padded.end(), 0.f);

            int64_t tiles = a.tiles();
            for (int64_t i = split * tiles / a.splits; i < (split + 1) * tiles / a.splits; ++i) {
                tile.place(pair, i);
                for (int r = 0; r < tile.rows; ++r) {
                    int64_t y = tile.y0 + r, part = r * D * LANES;
                    read_queries<D>(a.q.at(tile.b, tile.h, y, tile.x0), a.q.column, tile.lanes,
                                    tile.queries[r], query_rows + part);
                    read_queries<D>(a.grad_out.at(tile.b, tile.h, y, tile.x0), a.grad_out.column,
                                    tile.lanes, grad_columns + part, grad_rows + part);
                    read_queries<D>(a.out.at(tile.b, tile.h, y, tile.x0), a.out.column, tile.lanes,
                                    grad_queries, nullptr);
                    deltas[r] = dot<D>(grad_columns + part, grad_queries);
                    lses[r] = splat(INFINITY);  // weight 0 for lanes beyond the map
                    for (int lane = 0; lane < tile.lanes; ++lane)
                        lses[r][lane] = a.lse[(pair * a.height + y) * a.width + tile.x0 + lane];
                }
                std::fill_n(grad_queries, TILE_ROWS * D * LANES, 0.f);
                for (int64_t n0 = 0; n0 < a.samples; n0 += BLOCK) {
                    int count = tile.read_samples(n0);
                    for (int n = 0; n < count && a.table; ++n) {
                        const Lookup& l = tile.lookups[n];
                        std::memset(&grad_blended[(n * tile.table_rows + l.first) * LANES], 0,
                                    sizeof(float) * LANES * (l.last - l.first + 1));
                    }
                    std::memset(grad_keys, 0, sizeof grad_keys);
                    std::memset(grad_values, 0, sizeof grad_values);
                    vec slopes_y[BLOCK] = {};
                    for (int r = 0; r < tile.rows; ++r) {
                        int64_t part = r * D * LANES;
                        tile.read_logits(r, count);
                        dot_keys<D>(tile.values, grad_columns + part, count, block_grad);
                        vec* weights = tile.logits;
                        for (int n = 0; n < BLOCK; ++n) {
                            weights[n] = n < count ? exponential(weights[n] - lses[r]) : vec{};
                            block_grad[n] = weights[n] * (block_grad[n] - deltas[r]);
                        }
                        add_outer<D>(weights, grad_rows + part, count, grad_values);
                        add_outer<D>(block_grad, query_rows + part, count, grad_keys);
                        add_weighted<D>(block_grad, tile.keys, count, splat(1), grad_queries + part);
                        for (int n = 0; n < count && a.table; ++n) {
                            const Lookup& l = tile.lookups[n];
                            const float* near = tile.blend(n, l.y[r]);
                            float* to = &grad_blended[(n * tile.table_rows + l.y[r]) * LANES];
                            slopes_y[n] += block_grad[n] * l.inside_y[r] *
                                           (load(near + LANES) - load(near));
                            vec second = block_grad[n] * l.weight_y[r];
                            store(to, load(to) + block_grad[n] - second);
                            store(to + LANES, load(to + LANES) + second);
                        }
                    }
                    for (int n = 0; n < count; ++n)
                        for (int d = 0; d < D; ++d) {
                            grad_k[(n0 + n) * D + d] += grad_keys[n * D + d] * a.scale;
                            grad_v[(n0 + n) * D + d] += grad_values[n * D + d];
                        }
                    for (int n = 0; n < count && a.table; ++n) {
                        const Lookup& l = tile.lookups[n];
                        const float* grad = &grad_blended[n * tile.table_rows * LANES];
                        vec slope_x = {};
                        for (int r = l.first; r <= l.last; ++r) {
                            vec near, far;
                            l.entries(&tile.table[r * tile.table_stride], near, far);
                            slope_x += load(grad + r * LANES) * (far - near);
                        }
                        l.add_gradient(grad, padded.data(), tile.table_stride);
                        grad_positions[(n0 + n) * 2] -= sum(slopes_y[n]) * (a.table_rows - 1) / 4;
                        grad_positions[(n0 + n) * 2 + 1] -=
                            sum(slope_x * l.x.inside) * (a.table_columns - 1) / 4;
                    }
                }
                for (int r = 0; r < tile.rows; ++r)
                    write_queries<D>(grad_queries + r * D * LANES, splat(1), tile.lanes,
                                     a.grad_q.at(tile.b, tile.h, tile.y0 + r, tile.x0),
                                     a.grad_q.column);
            }
            for (int64_t r = 0; r < a.table_rows && a.table; ++r)
                std::memcpy(grad_table + r * a.table_columns,
                            &padded[(r + 1) * tile.table_stride + 1],
                            sizeof(float) * a.table_columns);
        }
    });
}

}  // namespace

EXPORT_LAYOUT(Arguments)

extern "C" void forward_kernel(const Arguments* a) { FOR_HEAD_SIZE(a->head_size, forward, *a) }
extern "C" void backward_kernel(const Arguments* a) { FOR_HEAD_SIZE(a->head_size, backward, *a) }

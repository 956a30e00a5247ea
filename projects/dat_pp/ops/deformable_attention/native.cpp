// Deformable attention on CPUs; the operator built of this is in native.py.
//
// A tile is some rows of LANES neighboring columns of queries of one head of one image. For a block
// of samples the rows of the padded table that the tile reaches are blended along x once, a vector
// of queries each; the bias of a sample and a row of queries is then a blend of two such vectors.
// The backward pass sums the gradient of those vectors and takes it apart along x at the end.
#include "../native.h"

namespace {

constexpr int ROWS = 32;  // of queries in a tile

struct Problem {
    int64_t batch, heads, groups, height, width, samples, table_rows, table_columns, has_table;
    float scale;
    Map q, k, v;
    const float *positions, *table, *query_y, *query_x;

    int64_t planes() const { return batch * heads; }
    int64_t strips() const { return (width + LANES - 1) / LANES; }
    int64_t tiles() const { return strips() * ((height + ROWS - 1) / ROWS); }
};

// Where displacements fall on an axis of ``size`` entries, padded by one on each side.
struct Cells {
    ivec cell;  // the first of two
    vec weight, inside;

    void find(const float* query, int count, float sample, int64_t size) {
        float near[LANES];
        for (int i = 0; i < LANES; ++i) near[i] = query[std::min(i, count - 1)];
        vec at = ((load(near) - sample) / 2 + 1) * ((size - 1) * 0.5f);
        vec end = splat(size), kept = at >= -1 ? (at <= end ? at : end) : splat(-1);
        // Truncated, after 2 is added, towards what is smaller.
        vec first = __builtin_convertvector(__builtin_convertvector(kept + 2, ivec), vec) - 2;
        first = first < end - 1 ? first : end - 1;
        cell = __builtin_convertvector(first, ivec) + 1;
        weight = at == at ? kept - first : at;
        inside = at >= -1 && at < end ? splat(1) : vec{};
    }
};

// What a tile needs to know of one sample.
struct Lookup {
    int y[ROWS];
    float weight_y[ROWS], inside_y[ROWS];
    Cells x;
    int first, last;  // padded table rows that are reached
    int left;         // first of 2 * LANES table columns that hold all lanes, or -1

    void find(const Problem& p, const float* position, int64_t y0, int rows, int64_t x0, int lanes) {
        first = INT32_MAX, last = 0;
        for (int r = 0; r < rows; r += LANES) {
            int count = std::min(LANES, rows - r);
            Cells cells;
            cells.find(p.query_y + y0 + r, count, position[0], p.table_rows);
            store(weight_y + r, cells.weight), store(inside_y + r, cells.inside);
            for (int i = 0; i < LANES; ++i) {
                y[r + i] = cells.cell[i];
                first = std::min(first, y[r + i]), last = std::max(last, y[r + i] + 1);
            }
        }
        x.find(p.query_x + x0, lanes, position[1], p.table_columns);
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
            near = __builtin_shuffle(low, high, x.cell - left);
            far = __builtin_shuffle(low, high, x.cell - left + 1);
            return;
        }
#endif
        float from[2][LANES];
        for (int i = 0; i < LANES; ++i)
            from[0][i] = row[x.cell[i]], from[1][i] = row[x.cell[i] + 1];
        near = load(from[0]), far = load(from[1]);
    }

    // Adds the gradient of blended vectors, (padded table row, lane), to the padded table.
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
        // A matrix product with the weights of the entries, so that no lane waits for another.
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

// A tile, with the buffers of its thread.
template <int D>
struct Tile {
    const Problem& p;
    int64_t b, h = -1, x0, y0;
    int lanes, rows;
    alignas(64) float keys[BLOCK * D], values[BLOCK * D];
    alignas(64) float queries[ROWS][D * LANES];
    alignas(64) vec logits[BLOCK];
    Lookup lookups[BLOCK];
    // The padded table of the head. Its rows can be read by two vectors from any column.
    int64_t table_rows, table_stride;
    std::vector<float> table;
    std::unique_ptr<float[]> blended;  // (sample, padded table row, lane)

    explicit Tile(const Problem& p)
        : p(p), table_rows(p.table_rows + 2), table_stride(p.table_columns + 2 + 2 * LANES) {
        if (p.has_table) {
            table.resize(table_rows * table_stride);
            blended.reset(new float[BLOCK * table_rows * LANES]);
        }
    }

    void place(int64_t plane, int64_t tile) {
        if (p.has_table && h != plane % p.heads) {
            const float* from = p.table + plane % p.heads * p.table_rows * p.table_columns;
            for (int64_t r = 0; r < p.table_rows; ++r)
                std::memcpy(&table[(r + 1) * table_stride + 1], from + r * p.table_columns,
                            sizeof(float) * p.table_columns);
        }
        b = plane / p.heads, h = plane % p.heads;
        x0 = tile % p.strips() * LANES, y0 = tile / p.strips() * ROWS;
        lanes = std::min<int64_t>(LANES, p.width - x0);
        rows = std::min<int64_t>(ROWS, p.height - y0);
    }

    float* blend(int n, int row) { return &blended[(n * table_rows + row) * LANES]; }

    // Keys (scaled), values and the blended table of samples n0 and on; returns how many.
    int read_samples(int64_t n0) {
        int count = std::min<int64_t>(BLOCK, p.samples - n0);
        read_keys<D>(p.k.at(b, h, n0, 0), p.k.row, count, p.scale, keys);
        read_keys<D>(p.v.at(b, h, n0, 0), p.v.row, count, 1, values);
        if (!p.has_table) return count;
        int64_t group = h / (p.heads / p.groups);
        const float* positions = p.positions + ((b * p.groups + group) * p.samples + n0) * 2;
        for (int n = 0; n < count; ++n) {
            Lookup& lookup = lookups[n];
            lookup.find(p, positions + 2 * n, y0, rows, x0, lanes);
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
        if (!p.has_table) return;
        for (int n = 0; n < count; ++n) {
            const float* at = blend(n, lookups[n].y[row]);
            vec near = load(at), far = load(at + LANES);
            logits[n] += near + lookups[n].weight_y[row] * (far - near);
        }
    }
};

template <int D>
void forward(const Problem& p, const Map& out, float* lse, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Tile<D> tile(p);
        std::vector<float> sums(ROWS * D * LANES);
        vec largest[ROWS], total[ROWS];
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < p.planes() * p.tiles(); ++task) {
            tile.place(task / p.tiles(), task % p.tiles());
            std::fill(sums.begin(), sums.end(), 0.f);
            for (int r = 0; r < tile.rows; ++r) {
                read_queries<D>(p.q.at(tile.b, tile.h, tile.y0 + r, tile.x0), p.q.column,
                                tile.lanes, tile.queries[r], nullptr);
                largest[r] = splat(-INFINITY), total[r] = vec{};
            }
            for (int64_t n = 0; n < p.samples; n += BLOCK) {
                int count = tile.read_samples(n);
                for (int r = 0; r < tile.rows; ++r) {
                    tile.read_logits(r, count);
                    online_softmax<D>(tile.logits, tile.values, count, largest[r], total[r],
                                      &sums[r * D * LANES]);
                }
            }
            for (int r = 0; r < tile.rows; ++r) {
                int64_t y = tile.y0 + r;
                write_queries<D>(&sums[r * D * LANES], 1.f / total[r], tile.lanes,
                                 out.at(tile.b, tile.h, y, tile.x0), out.column);
                float* to = lse + (task / p.tiles() * p.height + y) * p.width + tile.x0;
                for (int lane = 0; lane < tile.lanes; ++lane)
                    to[lane] = largest[r][lane] + std::log(total[r][lane]);
            }
        }
    }
}

// Gradients of k, v, positions and table are sums over queries: every split of the tiles of a plane
// has its own, (split, plane, ...).
struct Gradients {
    Map q;
    float *k, *v, *positions, *table;
    int64_t splits;
};

template <int D>
void backward(const Problem& p, const Map& out, const Map& grad_out, const float* lse,
              const Gradients& grads, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Tile<D> tile(p);
        std::vector<float> buffers(4 * ROWS * D * LANES);
        float* query_rows = buffers.data();
        float* grad_rows = query_rows + ROWS * D * LANES;
        float* grad_columns = grad_rows + ROWS * D * LANES;
        float* grad_queries = grad_columns + ROWS * D * LANES;
        std::unique_ptr<float[]> grad_blended(new float[BLOCK * tile.table_rows * LANES]);
        alignas(64) vec block_grad[BLOCK], lses[ROWS], deltas[ROWS];
        alignas(64) float grad_keys[BLOCK * D], grad_values[BLOCK * D];
        std::vector<float> padded(tile.table.size());
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < grads.splits * p.planes(); ++task) {
            int64_t split = task / p.planes(), plane = task % p.planes();
            float* grad_k = grads.k + task * p.samples * D;
            float* grad_v = grads.v + task * p.samples * D;
            float* grad_positions = grads.positions + task * p.samples * 2;
            float* grad_table = grads.table + task * p.table_rows * p.table_columns;
            std::fill(padded.begin(), padded.end(), 0.f);

            int64_t tiles = p.tiles();
            for (int64_t i = split * tiles / grads.splits; i < (split + 1) * tiles / grads.splits; ++i) {
                tile.place(plane, i);
                for (int r = 0; r < tile.rows; ++r) {
                    int64_t y = tile.y0 + r, part = r * D * LANES;
                    read_queries<D>(p.q.at(tile.b, tile.h, y, tile.x0), p.q.column, tile.lanes,
                                    tile.queries[r], query_rows + part);
                    read_queries<D>(grad_out.at(tile.b, tile.h, y, tile.x0), grad_out.column,
                                    tile.lanes, grad_columns + part, grad_rows + part);
                    read_queries<D>(out.at(tile.b, tile.h, y, tile.x0), out.column, tile.lanes,
                                    grad_queries, nullptr);
                    deltas[r] = dot<D>(grad_columns + part, grad_queries);
                    lses[r] = splat(INFINITY);  // no weight beyond the end
                    for (int lane = 0; lane < tile.lanes; ++lane)
                        lses[r][lane] = lse[(plane * p.height + y) * p.width + tile.x0 + lane];
                }
                std::fill_n(grad_queries, ROWS * D * LANES, 0.f);
                for (int64_t n0 = 0; n0 < p.samples; n0 += BLOCK) {
                    int count = tile.read_samples(n0);
                    for (int n = 0; n < count && p.has_table; ++n) {
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
                        for (int n = 0; n < count && p.has_table; ++n) {
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
                            grad_k[(n0 + n) * D + d] += grad_keys[n * D + d] * p.scale;
                            grad_v[(n0 + n) * D + d] += grad_values[n * D + d];
                        }
                    for (int n = 0; n < count && p.has_table; ++n) {
                        const Lookup& l = tile.lookups[n];
                        const float* grad = &grad_blended[n * tile.table_rows * LANES];
                        vec slope_x = {};
                        for (int r = l.first; r <= l.last; ++r) {
                            vec near, far;
                            l.entries(&tile.table[r * tile.table_stride], near, far);
                            slope_x += load(grad + r * LANES) * (far - near);
                        }
                        l.add_gradient(grad, padded.data(), tile.table_stride);
                        grad_positions[(n0 + n) * 2] -= sum(slopes_y[n]) * (p.table_rows - 1) / 4;
                        grad_positions[(n0 + n) * 2 + 1] -=
                            sum(slope_x * l.x.inside) * (p.table_columns - 1) / 4;
                    }
                }
                for (int r = 0; r < tile.rows; ++r)
                    write_queries<D>(grad_queries + r * D * LANES, splat(1), tile.lanes,
                                     grads.q.at(tile.b, tile.h, tile.y0 + r, tile.x0),
                                     grads.q.column);
            }
            for (int64_t r = 0; r < p.table_rows && p.has_table; ++r)
                std::memcpy(grad_table + r * p.table_columns,
                            &padded[(r + 1) * tile.table_stride + 1],
                            sizeof(float) * p.table_columns);
        }
    }
}

// ``sizes``: threads, channels of the heads as given and as padded, then those of Problem.
// ``maps``: q, k, v; ``arrays``: positions, table, query_y, query_x.
Problem read(const int64_t* s, const Map* maps, float* const* arrays) {
    return {s[3], s[4],    s[5],    s[6],    s[7],      s[8],      s[9],      s[10],    s[11],
            1 / std::sqrt(float(s[1])), maps[0], maps[1], maps[2], arrays[0], arrays[1], arrays[2],
            arrays[3]};
}

}  // namespace

// Further maps: out; further arrays: lse.
extern "C" void deformable_attention(const int64_t* sizes, const Map* maps, float* const* arrays) {
    Problem p = read(sizes, maps, arrays);
    FOR_HEAD_SIZE(sizes[2], forward, p, maps[3], arrays[4], sizes[0])
}

// Further sizes: splits; further maps: out, grad_out, grad_q; further arrays: lse, and the splits of
// the gradients of k, v, positions and table.
extern "C" void deformable_attention_backward(const int64_t* sizes, const Map* maps,
                                              float* const* arrays) {
    Problem p = read(sizes, maps, arrays);
    Gradients grads{maps[5], arrays[5], arrays[6], arrays[7], arrays[8], sizes[12]};
    FOR_HEAD_SIZE(sizes[2], backward, p, maps[3], maps[4], arrays[4], grads, sizes[0])
}

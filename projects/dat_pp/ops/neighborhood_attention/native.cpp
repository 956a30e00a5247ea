// Neighborhood attention on CPUs; the operator built of this is in native.py.
//
// A tile is a row of LANES neighboring queries of one head of one image. Together they reach
// LANES + K - 1 keys of each of K rows, of which every lane masks those that are not its own: the
// bias of a strip of tiles, one below the other, is a vector for each row and column of
// displacements, minus infinity where a lane has no such key.
#include "../native.h"

namespace {

constexpr int ROWS = 16;  // of queries in a band: the sums of one over its queries are its own
constexpr int MAX_KERNEL = 17;
static_assert(LANES + MAX_KERNEL - 1 <= BLOCK);

struct Problem {
    int64_t batch, heads, height, width, kernel;
    float scale;
    Map q, k, v;
    const float* bias;

    int64_t planes() const { return batch * heads; }
    int64_t bands() const { return (height + ROWS - 1) / ROWS; }
    int64_t size() const { return 2 * kernel - 1; }  // of the bias on an axis
    int64_t start(int64_t query, int64_t length) const {
        return std::min(std::max<int64_t>(query - kernel / 2, 0), length - kernel);
    }
};

// A strip of tiles in a band, with the buffers of its thread.
template <int D>
struct Strip {
    const Problem& p;
    int64_t b, h, x0;
    int lanes;
    int64_t first, count;  // keys of a row
    std::vector<vec> bias;  // (row of the bias, key)
    alignas(64) vec logits[MAX_KERNEL * BLOCK];
    alignas(64) float keys[BLOCK * D], queries[D * LANES];

    explicit Strip(const Problem& p) : p(p), bias(p.size() * BLOCK) {}

    // The entry of a lane and a key on the bias' x axis, or -1.
    int64_t displacement(int lane, int64_t key) const {
        int64_t query = std::min(x0 + lane, p.width - 1), begin = p.start(query, p.width);
        if (first + key < begin || first + key >= begin + p.kernel) return -1;
        return first + key - query + p.kernel - 1;
    }

    void place(int64_t plane, int64_t x) {
        b = plane / p.heads, h = plane % p.heads, x0 = x;
        lanes = std::min<int64_t>(LANES, p.width - x0);
        first = p.start(x0, p.width);
        count = p.start(x0 + lanes - 1, p.width) + p.kernel - first;
        const float* from = p.bias + h * p.size() * p.size();
        for (int64_t key = 0; key < count; ++key)
            for (int lane = 0; lane < LANES; ++lane) {
                int64_t column = displacement(lane, key);
                for (int64_t row = 0; row < p.size(); ++row)
                    bias[row * BLOCK + key][lane] =
                        column < 0 ? -INFINITY : from[row * p.size() + column];
            }
    }

    // Keys of a row of the map.
    const float* read(const Map& map, int64_t row, float factor) {
        read_keys<D>(map.at(b, h, row, first), map.column, count, factor, keys);
        return keys;
    }

    // Of the queries of row y, which are read before: (row of keys, key).
    void read_logits(int64_t y) {
        int64_t begin = p.start(y, p.height);
        for (int64_t i = 0; i < p.kernel; ++i) {
            vec* row = logits + i * BLOCK;
            dot_keys<D>(read(p.k, begin + i, p.scale), queries, count, row);
            const vec* add = &bias[(begin + i - y + p.kernel - 1) * BLOCK];
            for (int64_t key = 0; key < count; ++key) row[key] += add[key];
        }
    }
};

template <int D>
void forward(const Problem& p, const Map& out, float* lse, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Strip<D> strip(p);
        alignas(64) float sums[D * LANES];
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t plane = 0; plane < p.planes(); ++plane)
            for (int64_t band = 0; band < p.bands(); ++band)
                for (int64_t x = 0; x < p.width; x += LANES) {
                    strip.place(plane, x);
                    for (int64_t y = band * ROWS; y < std::min(p.height, (band + 1) * ROWS); ++y) {
                        read_queries<D>(p.q.at(strip.b, strip.h, y, x), p.q.column, strip.lanes,
                                        strip.queries, nullptr);
                        strip.read_logits(y);
                        vec largest = splat(-INFINITY), total = {};
                        for (int64_t i = 0; i < p.kernel; ++i)
                            for (int64_t key = 0; key < strip.count; ++key)
                                largest = maximum(largest, strip.logits[i * BLOCK + key]);
                        std::memset(sums, 0, sizeof sums);
                        for (int64_t i = 0; i < p.kernel; ++i) {
                            vec* row = strip.logits + i * BLOCK;
                            for (int64_t key = 0; key < strip.count; ++key) {
                                row[key] = exponential(row[key] - largest);
                                total += row[key];
                            }
                            const float* values = strip.read(p.v, p.start(y, p.height) + i, 1);
                            add_weighted<D>(row, values, strip.count, splat(1), sums);
                        }
                        write_queries<D>(sums, 1.f / total, strip.lanes,
                                         out.at(strip.b, strip.h, y, x), out.column);
                        float* to = lse + (plane * p.height + y) * p.width + x;
                        for (int lane = 0; lane < strip.lanes; ++lane)
                            to[lane] = largest[lane] + std::log(total[lane]);
                    }
                }
    }
}

template <int D>
void backward(const Problem& p, const Map& out, const Map& grad_out, const Map& grad_q,
              const Map& grad_k, const Map& grad_v, const float* lse, float* grad_bias,
              float* band_grads, int threads) {
    // Of keys and values, (plane, band, k or v, row, x, d): bands share rows of keys.
    const int64_t reach = ROWS + p.kernel - 1, part = reach * p.width * D;
#pragma omp parallel num_threads(threads)
    {
        Strip<D> strip(p);
        std::vector<vec> strip_bias(p.size() * BLOCK);
        alignas(64) vec grad_logits[BLOCK];
        alignas(64) float query_rows[D * LANES], grad_rows[D * LANES], grad_columns[D * LANES];
        alignas(64) float grad_queries[D * LANES], outer[BLOCK * D];
        // Adds the outer product of weights and queries to rows of keys.
        auto add_keys = [&](const vec* weights, const float* rows, float factor, float* to) {
            std::memset(outer, 0, sizeof outer);
            add_outer<D>(weights, rows, strip.count, outer);
            to += strip.first * D;
            for (int64_t i = 0; i < strip.count * D; ++i) to[i] += outer[i] * factor;
        };
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t plane = 0; plane < p.planes(); ++plane)
            for (int64_t band = 0; band < p.bands(); ++band) {
                int64_t y0 = band * ROWS, task = plane * p.bands() + band;
                float* keys = band_grads + task * 2 * part;
                float* values = keys + part;
                std::memset(keys, 0, sizeof(float) * 2 * part);
                for (int64_t x = 0; x < p.width; x += LANES) {
                    strip.place(plane, x);
                    std::fill(strip_bias.begin(), strip_bias.end(), vec{});
                    for (int64_t y = y0; y < std::min(p.height, y0 + ROWS); ++y) {
                        read_queries<D>(p.q.at(strip.b, strip.h, y, x), p.q.column, strip.lanes,
                                        strip.queries, query_rows);
                        read_queries<D>(grad_out.at(strip.b, strip.h, y, x), grad_out.column,
                                        strip.lanes, grad_columns, grad_rows);
                        read_queries<D>(out.at(strip.b, strip.h, y, x), out.column, strip.lanes,
                                        grad_queries, nullptr);
                        vec row_delta = dot<D>(grad_columns, grad_queries);
                        vec row_lse = splat(INFINITY);  // no weight beyond the end
                        for (int lane = 0; lane < strip.lanes; ++lane)
                            row_lse[lane] = lse[(plane * p.height + y) * p.width + x + lane];
                        strip.read_logits(y);
                        std::memset(grad_queries, 0, sizeof grad_queries);
                        int64_t begin = p.start(y, p.height);
                        for (int64_t i = 0; i < p.kernel; ++i) {
                            vec* weights = strip.logits + i * BLOCK;
                            vec* bias = &strip_bias[(begin + i - y + p.kernel - 1) * BLOCK];
                            dot_keys<D>(strip.read(p.v, begin + i, 1), grad_columns, strip.count,
                                        grad_logits);
                            for (int64_t key = 0; key < BLOCK; ++key) {
                                bool is_key = key < strip.count;
                                weights[key] = is_key ? exponential(weights[key] - row_lse) : vec{};
                                grad_logits[key] = weights[key] * (grad_logits[key] - row_delta);
                                if (is_key) bias[key] += grad_logits[key];
                            }
                            int64_t row = (begin + i - p.start(y0, p.height)) * p.width * D;
                            add_keys(weights, grad_rows, 1, values + row);
                            add_keys(grad_logits, query_rows, p.scale, keys + row);
                            add_weighted<D>(grad_logits, strip.read(p.k, begin + i, p.scale),
                                            strip.count, splat(1), grad_queries);
                        }
                        write_queries<D>(grad_queries, splat(1), strip.lanes,
                                         grad_q.at(strip.b, strip.h, y, x), grad_q.column);
                    }
                    float* to = grad_bias + task * p.size() * p.size();
                    for (int64_t key = 0; key < strip.count; ++key)
                        for (int lane = 0; lane < strip.lanes; ++lane) {
                            int64_t column = strip.displacement(lane, key);
                            for (int64_t row = 0; row < p.size() && column >= 0; ++row)
                                to[row * p.size() + column] += strip_bias[row * BLOCK + key][lane];
                        }
                }
            }
#pragma omp for schedule(static) collapse(2)
        for (int64_t plane = 0; plane < p.planes(); ++plane)
            for (int64_t y = 0; y < p.height; ++y)
                for (int64_t band = 0; band < p.bands(); ++band) {
                    int64_t row = y - p.start(band * ROWS, p.height);
                    if (row < 0 || row >= reach) continue;
                    const float* keys = band_grads + (plane * p.bands() + band) * 2 * part;
                    for (int64_t x = 0; x < p.width; ++x) {
                        const float* from = keys + (row * p.width + x) * D;
                        float* k = grad_k.at(plane / p.heads, plane % p.heads, y, x);
                        float* v = grad_v.at(plane / p.heads, plane % p.heads, y, x);
                        for (int d = 0; d < D; ++d) k[d] += from[d], v[d] += from[part + d];
                    }
                }
    }
}

// ``sizes``: threads, channels of the heads as given and as padded, then those of Problem.
// ``maps``: q, k, v; ``arrays``: bias.
Problem read(const int64_t* s, const Map* maps, float* const* arrays) {
    return {s[3], s[4], s[5], s[6], s[7], 1 / std::sqrt(float(s[1])), maps[0], maps[1], maps[2],
            arrays[0]};
}

}  // namespace

// Further maps: out; further arrays: lse.
extern "C" void neighborhood_attention(const int64_t* sizes, const Map* maps, float* const* arrays) {
    Problem p = read(sizes, maps, arrays);
    FOR_HEAD_SIZE(sizes[2], forward, p, maps[3], arrays[1], sizes[0])
}

// Further maps: out, grad_out, and grad_q, grad_k and grad_v, the latter two zero; further arrays:
// lse, the gradient of the bias for each band, zero, and room for what bands add to keys.
extern "C" void neighborhood_attention_backward(const int64_t* sizes, const Map* maps,
                                                float* const* arrays) {
    Problem p = read(sizes, maps, arrays);
    FOR_HEAD_SIZE(sizes[2], backward, p, maps[3], maps[4], maps[5], maps[6], maps[7], arrays[1],
                  arrays[2], arrays[3], sizes[0])
}

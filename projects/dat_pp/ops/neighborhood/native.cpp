// Neighborhood attention on CPUs; native.py calls it.
//
// A tile is a row of LANES neighboring queries of one (batch, head) pair. Together they reach
// LANES + K - 1 keys in each of K rows, of which every lane masks those outside its own window: for
// a strip of tiles, one below the other, the bias is a vector per row and column of displacements,
// minus infinity where a lane has no such key.
//
// A band is BAND_ROWS rows of queries. In the backward pass every band sums the gradients of keys,
// values and bias on its own.
#include "../native/kernels.h"

namespace {

static_assert(LANES + MAX_KERNEL - 1 <= BLOCK);

// Arguments of both kernels; `Arguments` in native.py mirrors it. The forward pass leaves the last
// two lines null.
struct Arguments {
    int64_t threads, head_size, batch, heads, height, width, kernel;
    float scale;
    const float* bias;
    Map q, k, v, out;
    float* lse;  // log-sum-exp of the logits, (B, h, H, W)
    Map grad_out, grad_q, grad_k, grad_v;  // grad_k and grad_v: zero at first
    float *grad_bias, *band_grads;  // (B * h, bands, ...); grad_bias: zero at first

    int64_t pairs() const { return batch * heads; }
    int64_t bands() const { return (height + BAND_ROWS - 1) / BAND_ROWS; }
    int64_t size() const { return 2 * kernel - 1; }  // of an axis of the bias
    int64_t start(int64_t query, int64_t length) const {
        return std::min(std::max<int64_t>(query - kernel / 2, 0), length - kernel);
    }
};

// A strip of tiles in a band and the buffers of its thread.
template <int D>
struct Strip {
    const Arguments& a;
    int64_t b, h, x0;
    int lanes;
    int64_t first, count;  // keys in reach of a row of the map
    std::vector<vec> bias;  // (row of the bias, key)
    alignas(64) vec logits[MAX_KERNEL * BLOCK];
    alignas(64) float keys[BLOCK * D], queries[D * LANES];

    explicit Strip(const Arguments& a) : a(a), bias(a.size() * BLOCK) {}

    // Column of the bias for a lane and a key; -1 outside of the window.
    int64_t displacement(int lane, int64_t key) const {
        int64_t query = std::min(x0 + lane, a.width - 1), begin = a.start(query, a.width);
        if (first + key < begin || first + key >= begin + a.kernel) return -1;
        return first + key - query + a.kernel - 1;
    }

    void place(int64_t pair, int64_t x) {
        b = pair / a.heads, h = pair % a.heads, x0 = x;
        lanes = std::min<int64_t>(LANES, a.width - x0);
        first = a.start(x0, a.width);
        count = a.start(x0 + lanes - 1, a.width) + a.kernel - first;
        const float* from = a.bias + h * a.size() * a.size();
        for (int64_t key = 0; key < count; ++key)
            for (int lane = 0; lane < LANES; ++lane) {
                int64_t column = displacement(lane, key);
                for (int64_t row = 0; row < a.size(); ++row)
                    bias[row * BLOCK + key][lane] =
                        column < 0 ? -INFINITY : from[row * a.size() + column];
            }
    }

    // Packs the keys in reach of a row of the map.
    const float* read(const Map& map, int64_t row, float factor) {
        read_keys<D>(map.at(b, h, row, first), map.column, count, factor, keys);
        return keys;
    }

    // Logits (row of keys, key) of the queries of row y, which have been read.
    void read_logits(int64_t y) {
        int64_t begin = a.start(y, a.height);
        for (int64_t i = 0; i < a.kernel; ++i) {
            vec* row = logits + i * BLOCK;
            dot_keys<D>(read(a.k, begin + i, a.scale), queries, count, row);
            const vec* add = &bias[(begin + i - y + a.kernel - 1) * BLOCK];
            for (int64_t key = 0; key < count; ++key) row[key] += add[key];
        }
    }
};

template <int D>
void forward(const Arguments& a) {
    parallel(a.threads, a.pairs() * a.bands(), [&](auto next) {
        Strip<D> strip(a);
        alignas(64) float sums[D * LANES];
        for (int64_t task; next(task);) {
            int64_t pair = task / a.bands(), band = task % a.bands();
            for (int64_t x = 0; x < a.width; x += LANES) {
                strip.place(pair, x);
                for (int64_t y = band * BAND_ROWS; y < std::min(a.height, (band + 1) * BAND_ROWS); ++y) {
                    read_queries<D>(a.q.at(strip.b, strip.h, y, x), a.q.column, strip.lanes,
                                    strip.queries, nullptr);
                    strip.read_logits(y);
                    vec row_max = splat(-INFINITY), row_sum = {};
                    for (int64_t i = 0; i < a.kernel; ++i)
                        for (int64_t key = 0; key < strip.count; ++key)
                            row_max = maximum(row_max, strip.logits[i * BLOCK + key]);
                    std::memset(sums, 0, sizeof sums);
                    for (int64_t i = 0; i < a.kernel; ++i) {
                        vec* row = strip.logits + i * BLOCK;
                        for (int64_t key = 0; key < strip.count; ++key) {
                            row[key] = exponential(row[key] - row_max);
                            row_sum += row[key];
                        }
                        const float* values = strip.read(a.v, a.start(y, a.height) + i, 1);
                        add_weighted<D>(row, values, strip.count, splat(1), sums);
                    }
                    write_queries<D>(sums, 1.f / row_sum, strip.lanes,
                                     a.out.at(strip.b, strip.h, y, x), a.out.column);
                    float* to = a.lse + (pair * a.height + y) * a.width + x;
                    for (int lane = 0; lane < strip.lanes; ++lane)
                        to[lane] = row_max[lane] + std::log(row_sum[lane]);
                }
            }
        }
    });
}

template <int D>
void backward(const Arguments& a) {
    // band_grads: gradients of keys and values, (pair, band, k or v, row, x, d). Bands overlap.
    const int64_t reach = BAND_ROWS + a.kernel - 1, part = reach * a.width * D;
    parallel(a.threads, a.pairs() * a.bands(), [&](auto next) {
        Strip<D> strip(a);
        std::vector<vec> strip_bias(a.size() * BLOCK);
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
        for (int64_t task; next(task);) {
            int64_t pair = task / a.bands(), y0 = task % a.bands() * BAND_ROWS;
            float* keys = a.band_grads + task * 2 * part;
            float* values = keys + part;
            std::memset(keys, 0, sizeof(float) * 2 * part);
            for (int64_t x = 0; x < a.width; x += LANES) {
                strip.place(pair, x);
                std::fill(strip_bias.begin(), strip_bias.end(), vec{});
                for (int64_t y = y0; y < std::min(a.height, y0 + BAND_ROWS); ++y) {
                    read_queries<D>(a.q.at(strip.b, strip.h, y, x), a.q.column, strip.lanes,
                                    strip.queries, query_rows);
                    read_queries<D>(a.grad_out.at(strip.b, strip.h, y, x), a.grad_out.column,
                                    strip.lanes, grad_columns, grad_rows);
                    read_queries<D>(a.out.at(strip.b, strip.h, y, x), a.out.column,
                                    strip.lanes, grad_queries, nullptr);
                    vec row_delta = dot<D>(grad_columns, grad_queries);
                    vec row_lse = splat(INFINITY);  // weight 0 for lanes beyond the map
                    for (int lane = 0; lane < strip.lanes; ++lane)
                        row_lse[lane] = a.lse[(pair * a.height + y) * a.width + x + lane];
                    strip.read_logits(y);
                    std::memset(grad_queries, 0, sizeof grad_queries);
                    int64_t begin = a.start(y, a.height);
                    for (int64_t i = 0; i < a.kernel; ++i) {
                        vec* weights = strip.logits + i * BLOCK;
                        vec* bias = &strip_bias[(begin + i - y + a.kernel - 1) * BLOCK];
                        dot_keys<D>(strip.read(a.v, begin + i, 1), grad_columns, strip.count,
                                    grad_logits);
                        for (int64_t key = 0; key < BLOCK; ++key) {
                            bool is_key = key < strip.count;
                            weights[key] = is_key ? exponential(weights[key] - row_lse) : vec{};
                            grad_logits[key] = weights[key] * (grad_logits[key] - row_delta);
                            if (is_key) bias[key] += grad_logits[key];
                        }
                        int64_t row = (begin + i - a.start(y0, a.height)) * a.width * D;
                        add_keys(weights, grad_rows, 1, values + row);
                        add_keys(grad_logits, query_rows, a.scale, keys + row);
                        add_weighted<D>(grad_logits, strip.read(a.k, begin + i, a.scale),
                                        strip.count, splat(1), grad_queries);
                    }
                    write_queries<D>(grad_queries, splat(1), strip.lanes,
                                     a.grad_q.at(strip.b, strip.h, y, x), a.grad_q.column);
                }
                float* to = a.grad_bias + task * a.size() * a.size();
                for (int64_t key = 0; key < strip.count; ++key)
                    for (int lane = 0; lane < strip.lanes; ++lane) {
                        int64_t column = strip.displacement(lane, key);
                        for (int64_t row = 0; row < a.size() && column >= 0; ++row)
                            to[row * a.size() + column] += strip_bias[row * BLOCK + key][lane];
                    }
            }
        }
    });
    parallel(a.threads, a.pairs() * a.height, [&](auto next) {
        for (int64_t task; next(task);) {
            int64_t pair = task / a.height, y = task % a.height;
            for (int64_t band = 0; band < a.bands(); ++band) {
                int64_t row = y - a.start(band * BAND_ROWS, a.height);
                if (row < 0 || row >= reach) continue;
                const float* keys = a.band_grads + (pair * a.bands() + band) * 2 * part;
                for (int64_t x = 0; x < a.width; ++x) {
                    const float* from = keys + (row * a.width + x) * D;
                    float* k = a.grad_k.at(pair / a.heads, pair % a.heads, y, x);
                    float* v = a.grad_v.at(pair / a.heads, pair % a.heads, y, x);
                    for (int d = 0; d < D; ++d) k[d] += from[d], v[d] += from[part + d];
                }
            }
        }
    });
}

}  // namespace

EXPORT_LAYOUT(Arguments)

extern "C" void forward_kernel(const Arguments* a) { FOR_HEAD_SIZE(a->head_size, forward, *a) }
extern "C" void backward_kernel(const Arguments* a) { FOR_HEAD_SIZE(a->head_size, backward, *a) }

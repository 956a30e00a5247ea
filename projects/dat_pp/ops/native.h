// What the CPU kernels share: vectors of neighboring queries, one query a lane.
//
// GCC's vector extensions map to whatever the machine has; a vector here is one register of
// AVX-512, else one of AVX2 or two of what is smaller.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int BLOCK = 32;  // keys whose logits are held at a time
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float unaligned_vec __attribute__((vector_size(4 * LANES), aligned(4)));

inline vec load(const float* from) { return *reinterpret_cast<const unaligned_vec*>(from); }
inline void store(float* to, vec x) { *reinterpret_cast<unaligned_vec*>(to) = x; }
inline vec splat(float x) { return x - vec{}; }
inline vec maximum(vec a, vec b) { return a > b ? a : b; }

inline float sum(vec x) {
    float total = 0;
    for (int i = 0; i < LANES; ++i) total += x[i];
    return total;
}

// exp(x) to 2 units in the last place, for x <= 0; below -87 it is 0.
inline vec exponential(vec x) {
    const vec shift = splat(12582912.f);  // adding 1.5 * 2^23 rounds to an integer
    vec kept = x < -87.f ? splat(-87.f) : x;  // what is not a number stays so
    vec scaled = kept * 1.44269504f + shift;
    vec power = scaled - shift;
    vec rest = kept - power * 0.693359375f;
    rest = rest + power * 2.12194440e-4f;
    vec sum = splat(1.9875691500e-4f);
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.f;
    ivec exponent = __builtin_convertvector(power, ivec) << 23;
    vec result = (vec)((ivec)sum + exponent);
    return x < -87.f ? vec{} : result;
}

// A (B, h, H, W, d) tensor whose last axis is contiguous; (B, h, N, d) has N rows of one column.
// native.py passes it as five 64-bit numbers, strides in elements.
struct Map {
    float* data;
    int64_t image, head, row, column;

    float* at(int64_t b, int64_t h, int64_t y, int64_t x) const {
        return data + b * image + h * head + y * row + x * column;
    }
};

// Runs FUNCTION<D>(...) for a head of ``dim`` channels; the caller pads heads to one of these.
#define FOR_HEAD_SIZE(dim, FUNCTION, ...)            \
    switch (dim) {                                   \
        case 32: FUNCTION<32>(__VA_ARGS__); break;   \
        case 64: FUNCTION<64>(__VA_ARGS__); break;   \
    }

template <int STEP>
inline void transpose_step(vec* x) {
    ivec low, high;
    for (int i = 0; i < LANES; ++i) {
        low[i] = i & STEP ? LANES + i - STEP : i;
        high[i] = i & STEP ? LANES + i : i + STEP;
    }
    for (int i = 0; i < LANES; ++i)
        if (!(i & STEP)) {
            vec first = x[i], second = x[i + STEP];
            x[i] = __builtin_shuffle(first, second, low);
            x[i + STEP] = __builtin_shuffle(first, second, high);
        }
}

inline void transpose(vec* x) {  // LANES x LANES
    if (LANES == 16) transpose_step<LANES / 2>(x);
    transpose_step<4>(x), transpose_step<2>(x), transpose_step<1>(x);
}

// LANES queries: (d, lane) and, unless null, (lane, d). Lanes beyond ``count`` are zero.
template <int D>
inline void read_queries(const float* from, int64_t stride, int count, float* columns, float* rows) {
    for (int d = 0; d < D; d += LANES) {
        vec x[LANES];
        for (int i = 0; i < LANES; ++i) x[i] = i < count ? load(from + i * stride + d) : vec{};
        for (int i = 0; rows && i < LANES; ++i) store(rows + i * D + d, x[i]);
        transpose(x);
        for (int i = 0; i < LANES; ++i) store(columns + (d + i) * LANES, x[i]);
    }
}

// (d, lane), times a factor a lane, back to ``count`` queries.
template <int D>
inline void write_queries(const float* columns, vec factor, int count, float* to, int64_t stride) {
    for (int d = 0; d < D; d += LANES) {
        vec x[LANES];
        for (int i = 0; i < LANES; ++i) x[i] = load(columns + (d + i) * LANES) * factor;
        transpose(x);
        for (int i = 0; i < count; ++i) store(to + i * stride + d, x[i]);
    }
}

// products[n] = sum_d keys[n][d] * queries[d], for ``count`` keys, rounded up to 8.
template <int D>
inline void dot_keys(const float* keys, const float* queries, int count, vec* products) {
    for (int n = 0; n < count; n += 8) {
        vec acc[8] = {};
        for (int d = 0; d < D; ++d) {
            vec q = load(queries + d * LANES);
            for (int i = 0; i < 8; ++i) acc[i] += q * keys[(n + i) * D + d];
        }
        for (int i = 0; i < 8; ++i) products[n + i] = acc[i];
    }
}

// sum_d a[d] * b[d], in the order of dot_keys: a softmax of one key then has a gradient of zero.
template <int D>
inline vec dot(const float* a, const float* b) {
    vec acc = {};
    for (int d = 0; d < D; ++d) acc += load(a + d * LANES) * load(b + d * LANES);
    return acc;
}

// sums[d] = sums[d] * factor + sum_n weights[n] * values[n][d], for ``count`` keys.
template <int D>
inline void add_weighted(const vec* weights, const float* values, int count, vec factor, float* sums) {
    for (int d = 0; d < D; d += LANES) {  // as many sums as half the registers hold
        vec acc[LANES];
        for (int i = 0; i < LANES; ++i) acc[i] = load(sums + (d + i) * LANES) * factor;
        for (int n = 0; n < count; ++n)
            for (int i = 0; i < LANES; ++i) acc[i] += weights[n] * values[n * D + d + i];
        for (int i = 0; i < LANES; ++i) store(sums + (d + i) * LANES, acc[i]);
    }
}

// sums[n][d] += sum_lane weights[n][lane] * rows[lane][d], for ``count`` keys, rounded up to 8.
template <int D>
inline void add_outer(const vec* weights, const float* rows, int count, float* sums) {
    const float* scalars = reinterpret_cast<const float*>(weights);
    for (int d = 0; d < D; d += LANES)
        for (int n = 0; n < count; n += 8) {
            vec acc[8];
            for (int i = 0; i < 8; ++i) acc[i] = load(sums + (n + i) * D + d);
            for (int lane = 0; lane < LANES; ++lane) {
                vec row = load(rows + lane * D + d);
                for (int i = 0; i < 8; ++i) acc[i] += row * scalars[(n + i) * LANES + lane];
            }
            for (int i = 0; i < 8; ++i) store(sums + (n + i) * D + d, acc[i]);
        }
}

// ``count`` keys, times a factor, one after the other; those up to BLOCK are zero.
template <int D>
inline void read_keys(const float* from, int64_t stride, int count, float factor, float* keys) {
    for (int n = 0; n < count; ++n)
        for (int d = 0; d < D; ++d) keys[n * D + d] = from[n * stride + d] * factor;
    std::memset(keys + count * D, 0, sizeof(float) * D * (BLOCK - count));
}

// One block of logits into the running softmax of LANES queries.
template <int D>
inline void online_softmax(vec* logits, const float* values, int count, vec& largest, vec& total,
                           float* sums) {
    vec now = largest;
    for (int n = 0; n < count; ++n) now = maximum(now, logits[n]);
    vec factor = exponential(largest - now);
    vec added = {};
    for (int n = 0; n < count; ++n) {
        logits[n] = exponential(logits[n] - now);
        added += logits[n];
    }
    total = total * factor + added;
    largest = now;
    add_weighted<D>(logits, values, count, factor, sums);
}

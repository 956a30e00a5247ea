// Shared by the CPU kernels: SIMD vectors of neighboring queries, one query per lane.
//
// The vector extensions of GCC and Clang map to whatever the machine has: a vector is one AVX-512
// register, else one AVX2 register or two of 128 bits.
//
// The constants in capitals that no file defines (FOR_EACH_HEAD_SIZE and those of one operator) are
// compiler flags: native.py of the operator states them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int BLOCK = 32;  // keys per block of logits
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

// exp(x) for x <= 0, within 2 ulp; 0 below -87, NaN for NaN.
inline vec exponential(vec x) {
    const vec shift = splat(12582912.f);  // adding 1.5 * 2^23 rounds to an integer
    vec clamped = x < -87.f ? splat(-87.f) : x;  // keeps NaN
    vec scaled = clamped * 1.44269504f + shift;
    vec power = scaled - shift;
    vec rest = clamped - power * 0.693359375f;
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

// A float (B, h, H, W, d) tensor with a contiguous last axis and strides in elements; (B, h, N, d)
// has N rows of one column. `Map` in build.py mirrors it.
struct Map {
    float* data;
    int64_t image, head, row, column;

    float* at(int64_t b, int64_t h, int64_t y, int64_t x) const {
        return data + b * image + h * head + y * row + x * column;
    }
};

// Calls FUNCTION<D>(...) for heads padded to ``size`` channels.
#define CASE_HEAD_SIZE(SIZE) case SIZE: run(std::integral_constant<int, SIZE>()); break;
#define FOR_HEAD_SIZE(size, FUNCTION, ...)                                      \
    {                                                                           \
        auto run = [&](auto dim) { FUNCTION<decltype(dim)::value>(__VA_ARGS__); }; \
        switch (size) { FOR_EACH_HEAD_SIZE(CASE_HEAD_SIZE) }                    \
    }

// Calls body(next) on every thread; ``while (next(task))`` gives it one task of ``count`` after the
// other, until all are taken.
//
// With OpenMP the threads are those of PyTorch's own pool. Where OpenMP would bring in a runtime of
// its own beside PyTorch's, build.py leaves it out, and threads are started here.
template <class Body>
inline void parallel(int64_t threads, int64_t count, const Body& body) {
    std::atomic<int64_t> taken{0};
    auto work = [&] {
        body([&](int64_t& task) {
            task = taken.fetch_add(1, std::memory_order_relaxed);
            return task < count;
        });
    };
    threads = std::max<int64_t>(std::min(threads, count), 1);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    work();
#else
    std::vector<std::thread> others;
    try {
        while (static_cast<int64_t>(others.size()) < threads - 1) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads: those that there are do all tasks
    }
    work();
    for (std::thread& other : others) other.join();
#endif
}

// Read by Python when it loads the library: the size of the struct of arguments and of a vector.
#define EXPORT_LAYOUT(ARGUMENTS)                                  \
    extern "C" const int64_t arguments_size = sizeof(ARGUMENTS);  \
    extern "C" const int64_t lanes = LANES;

// Swaps blocks of STEP x STEP: a[i + STEP] <-> b[i] for every lane i without the bit STEP.
template <int STEP>
inline void transpose_step(vec* x) {
    for (int i = 0; i < LANES; ++i)
        if (!(i & STEP)) {
            vec first = x[i], second = x[i + STEP];
#ifdef __clang__
            vec low, high;  // its optimizer makes shuffles of these copies
            for (int j = 0; j < LANES; ++j) {
                low[j] = j & STEP ? second[j - STEP] : first[j];
                high[j] = j & STEP ? second[j] : first[j + STEP];
            }
            x[i] = low, x[i + STEP] = high;
#else
            ivec low, high;
            for (int j = 0; j < LANES; ++j) {
                low[j] = j & STEP ? LANES + j - STEP : j;
                high[j] = j & STEP ? LANES + j : j + STEP;
            }
            x[i] = __builtin_shuffle(first, second, low);
            x[i + STEP] = __builtin_shuffle(first, second, high);
#endif
        }
}

inline void transpose(vec* x) {  // LANES x LANES
    if (LANES == 16) transpose_step<LANES / 2>(x);
    transpose_step<4>(x), transpose_step<2>(x), transpose_step<1>(x);
}

// Reads LANES queries as (d, lane) and, unless ``rows`` is null, as (lane, d). Lanes from ``count``
// on are zero.
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

// Writes (d, lane), times a factor per lane, to ``count`` queries.
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

// sum_d a[d] * b[d], summed in the order of dot_keys so that the logit gradient of a single key is
// exactly zero.
template <int D>
inline vec dot(const float* a, const float* b) {
    vec acc = {};
    for (int d = 0; d < D; ++d) acc += load(a + d * LANES) * load(b + d * LANES);
    return acc;
}

// sums[d] = sums[d] * factor + sum_n weights[n] * values[n][d], for ``count`` keys.
template <int D>
inline void add_weighted(const vec* weights, const float* values, int count, vec factor, float* sums) {
    for (int d = 0; d < D; d += LANES) {  // LANES accumulators fill half of the registers
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

// Packs ``count`` keys, times a factor, into (BLOCK, D); the remaining rows are zero.
template <int D>
inline void read_keys(const float* from, int64_t stride, int count, float factor, float* keys) {
    for (int n = 0; n < count; ++n)
        for (int d = 0; d < D; ++d) keys[n * D + d] = from[n * stride + d] * factor;
    std::memset(keys + count * D, 0, sizeof(float) * D * (BLOCK - count));
}

// Online softmax: adds a block of logits to the weighted sums of LANES queries.
template <int D>
inline void online_softmax(vec* logits, const float* values, int count, vec& row_max, vec& row_sum,
                           float* sums) {
    vec new_max = row_max;
    for (int n = 0; n < count; ++n) new_max = maximum(new_max, logits[n]);
    vec rescale = exponential(row_max - new_max);
    vec added = {};
    for (int n = 0; n < count; ++n) {
        logits[n] = exponential(logits[n] - new_max);
        added += logits[n];
    }
    row_sum = row_sum * rescale + added;
    row_max = new_max;
    add_weighted<D>(logits, values, count, rescale, sums);
}

// The part of CUDA that the kernels use (device.cuh says which), on the CPU. Every thread of a block is a fiber, or with
// -DEMULATION_THREADS a thread of the system for ThreadSanitizer; emulator.cpp runs them.
//
// It is stricter than a GPU where a GPU would let an error pass: shared memory is NaN at first, a copy's target is NaN
// until copy_wait, addresses of 16-byte accesses are checked, and so is that a barrier or a warp's operation is reached
// by all its threads at the same line.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define DEVICE static inline __attribute__((unused))

struct uint3 { u32 x, y, z; };
struct uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

// Both have no arithmetic of their own: a kernel computes in float.
struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };

namespace emulation {

enum class Collective { Barrier, Sync, Shuffle, MmaF16, MmaBf16, MmaTf32 };

// What a lane brings to its warp's operation, and takes from it. It lies on the lane's stack while the lane waits.
struct Exchange {
    Collective what;
    int line;
    u32 mask;
    u32 value, source; // of a shuffle
    float* d;          // of an mma
    const u32 *a, *b;
};

// The thread that runs.
struct Place { uint3 thread, block, threads, grid; };
extern __thread Place* place;

void barrier(int line);
void collective(Exchange& exchange);
void* shared_array(const void* key, size_t bytes);
void copy_begin(void* shared, const void* global, bool valid);
void copy_commit();
void copy_wait(u32 pending);
// Ends the launch with this message.
[[noreturn]] void fail(const char* message);

struct Kernel {
    const char* name;
    u32 threads;
    size_t arguments;
    void (*run)(const void* arguments);
    const Kernel* next;
    static const Kernel* first;
    Kernel(const char* name, u32 threads, size_t arguments, void (*run)(const void*))
        : name(name), threads(threads), arguments(arguments), run(run), next(first) { first = this; }
};

inline float float_of_bits(u32 bits) { float value; memcpy(&value, &bits, 4); return value; }
inline u32 bits_of_float(float value) { u32 bits; memcpy(&bits, &value, 4); return bits; }

inline float float_of_f16(u32 half) {
    const u32 sign = (half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest > 0x7c00) return float_of_bits(0x7fffffff); // the GPU's only NaN
    if (rest < 0x400) return float_of_bits(sign | bits_of_float(float(rest) * 0x1p-24f));
    return float_of_bits(sign | (rest < 0x7c00 ? (rest << 13) + 0x38000000 : 0x7f800000));
}
inline unsigned short f16_of_float(float value) {
    const u32 bits = bits_of_float(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return 0x7fff; // the GPU's only NaN
    if (rest >= 0x477ff000) return sign | 0x7c00;
    if (rest < 0x38800000) return sign | u32(std::nearbyint(double(float_of_bits(rest)) * 0x1p24));
    return sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
}
inline unsigned short bf16_of_float(float value) {
    const u32 bits = bits_of_float(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
// cvt.rna.tf32.f32
inline u32 tf32_of_float(float value) {
    const u32 bits = bits_of_float(value);
    if ((bits & 0x7f800000) == 0x7f800000) return bits << 9 ? 0x7fffffff : bits;
    return (bits + 0x1000) & 0xffffe000;
}

// As nvcc makes it: within 2 units, by way of a power of 2, which the GPU approximates and which is rounded here.
inline float exponential(float x) {
    const float share = std::fmin(std::fmax(fmaf(x, float_of_bits(0x3BBB989D), 0.5f), 0.0f), 1.0f);
    // Rounded down, so that its low bits are the exponent; the sum is exact in f64.
    const double exact = double(share) * 252.0 + 12582913.0;
    float scaled = float(exact);
    if (scaled > exact) scaled = std::nextafter(scaled, 0.0f);
    const float whole = scaled - 12583039.0f;
    const float rest = fmaf(x, float_of_bits(0x32A57060), fmaf(x, float_of_bits(0x3FB8AA3B), -whole));
    const float power = float(std::exp2(double(rest)));
    return (std::fabs(power) < 0x1p-126f ? 0.0f : power) * float_of_bits(bits_of_float(scaled) << 23);
}

// As nvcc makes it: a polynomial up to about 1, and 1 less a power of 2 above, as in `exponential`.
inline float error_function(float x) {
    static constexpr u32 small[] = {0x38B1E96A, 0xBA574D20, 0x3BAAD5EA, 0xBCDC1BE7, 0x3DE718AF, 0xBEC093AC, 0x3E0375D3};
    static constexpr u32 large[] = {0x38EB4C3A, 0xBAAE005B, 0x3C09919F, 0xBD24D99A, 0x3E235519, 0x3F69B4F9, 0x3F210A14};
    const float size = std::fabs(x);
    const bool is_large = size >= float_of_bits(0x3F8060FE);
    const u32* coefficients = is_large ? large : small;
    const float at = is_large ? size : x * x, factor = is_large ? -size : x;
    float sum = float_of_bits(coefficients[0]);
    for (u32 i = 1; i < 7; ++i) sum = fmaf(sum, at, float_of_bits(coefficients[i]));
    sum = fmaf(sum, factor, factor);
    if (!is_large) return sum;
    const float power = float(std::exp2(double(sum)));
    return std::copysign(1.0f - (power < 0x1p-126f ? 0.0f : power), x);
}

inline u32 shuffle(int line, u32 mask, u32 value, u32 source) {
    Exchange exchange{Collective::Shuffle, line, mask, value, source, nullptr, nullptr, nullptr};
    collective(exchange);
    return exchange.value;
}
template <typename T> T shuffle(int line, u32 mask, T value, u32 source) {
    static_assert(sizeof(T) == 4, "the emulation shuffles values of 4 bytes");
    u32 bits;
    memcpy(&bits, &value, 4);
    bits = shuffle(line, mask, bits, source);
    memcpy(&value, &bits, 4);
    return value;
}
inline void sync_warp(int line, u32 mask = ~0u) {
    Exchange exchange{Collective::Sync, line, mask, 0, 0, nullptr, nullptr, nullptr};
    collective(exchange);
}
inline void mma(Collective what, float* d, const u32* a, const u32* b) {
    Exchange exchange{what, 0, ~0u, 0, 0, d, a, b};
    collective(exchange);
}

} // namespace emulation

#define threadIdx (emulation::place->thread)
#define blockIdx (emulation::place->block)
#define blockDim (emulation::place->threads)
#define gridDim (emulation::place->grid)

#define KERNEL(NAME, ARGS, THREADS, ...)                                                                       \
    static_assert(sizeof(ARGS) <= 4096, "the arguments of a kernel take at most 4096 bytes");                  \
    static void NAME(const ARGS& args);                                                                        \
    static const emulation::Kernel NAME##_entry(#NAME, THREADS, sizeof(ARGS), [](const void* args) {           \
        NAME(*static_cast<const ARGS*>(args));                                                                 \
    });                                                                                                        \
    static void NAME(const ARGS& args)

// The lambda's static is one for each place in the source and each instance of a template, as the array is in CUDA.
#define SHARED_ARRAY(T, NAME, N)                                                                               \
    T(&NAME)[N] = *static_cast<T(*)[N]>(                                                                       \
        emulation::shared_array([]() -> const void* { static char key; return &key; }(), sizeof(T) * (N)))

#define expf(X) emulation::exponential(X)
#define erff(X) emulation::error_function(X)

#define __syncthreads() emulation::barrier(__LINE__)
#define __syncwarp(...) emulation::sync_warp(__LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(MASK, VALUE, LANE) emulation::shuffle(__LINE__, MASK, VALUE, u32(LANE))
#define __shfl_xor_sync(MASK, VALUE, BITS) emulation::shuffle(__LINE__, MASK, VALUE, threadIdx.x % 32 ^ u32(BITS))

DEVICE void __threadfence() { __atomic_signal_fence(__ATOMIC_SEQ_CST); } // atomics below order memory themselves
DEVICE u32 atomicAdd(u32* address, u32 value) { return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST); }
DEVICE u32 atomicOr(u32* address, u32 value) { return __atomic_fetch_or(address, value, __ATOMIC_SEQ_CST); }
DEVICE u32 atomicInc(u32* address, u32 limit) {
    u32 old = __atomic_load_n(address, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(address, &old, old >= limit ? 0 : old + 1, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {}
    return old;
}

template <typename T> DEVICE T min(T a, T b) { return b < a ? b : a; }
template <typename T> DEVICE T max(T a, T b) { return a < b ? b : a; }
DEVICE float min(float a, float b) { return fminf(a, b); }
DEVICE float max(float a, float b) { return fmaxf(a, b); }
DEVICE u32 __umulhi(u32 a, u32 b) { return u32(u64(a) * b >> 32); }
DEVICE float rsqrtf(float value) { return float(1.0 / std::sqrt(double(value))); }
// Reduced before the product with pi, so that the argument's own rounding is all that is lost.
DEVICE void sincospi(double value, double* sine, double* cosine) {
    const double reduced = std::remainder(value, 2.0), half = std::rint(2.0 * reduced);
    const double angle = (reduced - 0.5 * half) * 3.14159265358979323846, s = std::sin(angle), c = std::cos(angle);
    const int quarter = int(half) & 3;
    *sine = quarter == 0 ? s : quarter == 1 ? c : quarter == 2 ? -s : -c;
    *cosine = quarter == 0 ? c : quarter == 1 ? -s : quarter == 2 ? -c : s;
}

DEVICE float to_float(float value) { return value; }
DEVICE float to_float(f16 value) { return emulation::float_of_f16(value.bits); }
DEVICE float to_float(bf16 value) { return emulation::float_of_bits(u32(value.bits) << 16); }
template <typename T> inline T from_float(float value);
template <> inline float from_float<float>(float value) { return value; }
template <> inline f16 from_float<f16>(float value) { return {emulation::f16_of_float(value)}; }
template <> inline bf16 from_float<bf16>(float value) { return {emulation::bf16_of_float(value)}; }
DEVICE u32 bits_of(float value) { return emulation::bits_of_float(value); }
DEVICE u32 bits_of(f16 value) { return value.bits; }
DEVICE u32 bits_of(bf16 value) { return value.bits; }
DEVICE float float_of_bits(u32 bits) { return emulation::float_of_bits(bits); }
DEVICE u32 to_tf32(float value) { return emulation::tf32_of_float(value); }

DEVICE void move16(void* to, const void* from) {
    if ((size_t(to) | size_t(from)) % 16) emulation::fail("an access of 16 bytes is not on a boundary of 16");
    memcpy(to, from, 16);
}
DEVICE void copy16_async(void* shared, const void* global, bool valid) { emulation::copy_begin(shared, global, valid); }
DEVICE void copy_commit() { emulation::copy_commit(); }
template <u32 N> inline void copy_wait() { emulation::copy_wait(N); }

DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::mma(emulation::Collective::MmaF16, d, a, b);
}
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::mma(emulation::Collective::MmaBf16, d, a, b);
}
DEVICE void mma_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::mma(emulation::Collective::MmaTf32, d, a, b);
}

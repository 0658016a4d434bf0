// What the kernels may use, for two compilers: nvcc, and with CUDA_EMULATION the host's, which runs them on the CPU
// (emulation/cpp/emulator.h gives the same names). Rules that keep a kernel checkable on both: one struct argument, blocks
// of one dimension and of the size that KERNEL says, static shared memory by SHARED_ARRAY, explicit fmaf (nvcc gets
// --fmad=false, the host's compiler -ffp-contract=off).
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef CUDA_EMULATION
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef __half f16;
typedef __nv_bfloat16 bf16;

// Defines a kernel: `KERNEL(name, ArgumentStruct, threads) { ... args.field ... }`; a fourth argument is how many blocks a
// multiprocessor shall hold at least, which bounds the registers. __grid_constant__: an index into an array
// of the struct would otherwise copy it to each thread's memory.
#define KERNEL(NAME, ARGS, ...)                                                                 \
    static_assert(sizeof(ARGS) <= 4096, "the arguments of a kernel take at most 4096 bytes");   \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) NAME(const __grid_constant__ ARGS args)

// An array in the block's shared memory, on a boundary of 16 bytes. Its values are undefined at first.
#define SHARED_ARRAY(T, NAME, N) __shared__ __align__(16) T NAME[N]

#define DEVICE static __device__ __forceinline__

DEVICE float to_float(float value) { return value; }
DEVICE float to_float(f16 value) { return __half2float(value); }
DEVICE float to_float(bf16 value) { return __bfloat162float(value); }

// Rounds to the nearest, ties to even.
template <typename T> __device__ __forceinline__ T from_float(float value);
template <> __device__ __forceinline__ float from_float<float>(float value) { return value; }
template <> __device__ __forceinline__ f16 from_float<f16>(float value) { return __float2half_rn(value); }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float value) { return __float2bfloat16_rn(value); }

DEVICE u32 bits_of(float value) { return __float_as_uint(value); }
DEVICE u32 bits_of(f16 value) { return __half_as_ushort(value); }
DEVICE u32 bits_of(bf16 value) { return __bfloat16_as_ushort(value); }
DEVICE float float_of_bits(u32 bits) { return __uint_as_float(bits); }

// Rounds to 10 bits after the point, ties away from zero.
DEVICE u32 to_tf32(float value) {
    u32 rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
    return rounded;
}

DEVICE void move16(void* to, const void* from) { *static_cast<uint4*>(to) = *static_cast<const uint4*>(from); }

// Begins a copy of 16 bytes (both addresses on boundaries of 16) into the next group; zeros arrive if not `valid`, and
// `global` is then not read.
DEVICE void copy16_async(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid ? 16u : 0u)
                 : "memory");
}
// Closes the group of the copies that this thread began.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups are under way. Other threads see the data after a barrier.
template <u32 N> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// d += a b for a tile of 16 rows and 8 columns, by a whole warp. The fragments lie as in the PTX ISA ("Matrix Fragments for
// mma.m16n8k16", "mma.m16n8k8"): with g = lane / 4 and t = lane % 4, d holds (g, 2t), (g, 2t + 1), (g + 8, 2t) and
// (g + 8, 2t + 1); a register of 16-bit elements holds two neighbours in k, the lower one in its low half.
#define MMA(NAME, SHAPE, TYPE)                                                                                       \
    DEVICE void NAME(float(&d)[4], const u32(&a)[4], const u32(&b)[2]) {                                             \
        asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPE "." TYPE ".f32 "                                 \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                               \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                            \
    }
MMA(mma_f16, "m16n8k16", "f16")
MMA(mma_bf16, "m16n8k16", "bf16")
MMA(mma_tf32, "m16n8k8", "tf32")
#undef MMA
#endif

// 16 bytes of elements: one load or store of a thread.
template <typename T> struct alignas(16) Pack {
    static constexpr u32 V = 16 / sizeof(T);
    T e[V];
};
// The address lies on a boundary of 16 bytes.
template <typename T> __device__ __forceinline__ Pack<T> load16(const T* from) {
    Pack<T> pack;
    move16(&pack, from);
    return pack;
}
// The address lies on a boundary of 16 bytes.
template <typename T> __device__ __forceinline__ void store16(T* to, const Pack<T>& pack) { move16(to, &pack); }

// x sigmoid(x).
DEVICE float silu(float value) { return value / (1.0f + expf(-value)); }
// The exact one, by the error function.
DEVICE float gelu(float value) { return 0.5f * value * (1.0f + erff(value * 0.70710678f)); }

// The sum over the lanes of a warp, in a fixed order; every lane has it.
DEVICE float warp_sum(float value) {
#pragma unroll
    for (u32 distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

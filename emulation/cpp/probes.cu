// Kernels that try what device.cuh offers, right and wrong: they test the emulation itself, and the interpreter of PTX.
#include "noise.cuh"

struct ProbeArgs {
    const void* a;
    const void* b;
    void* out;
    u32 count;
    u32 wrong; // 0, or which mistake to make
};

// out[16][8] (f32) = a[16][K] b[8][K], by one warp from fragments that each lane gathers by itself.
DEVICE void fragments16(const ProbeArgs& args, u32 (&a)[4], u32 (&b)[2]) {
    const u32 g = threadIdx.x / 4, t = threadIdx.x % 4;
    const unsigned short* from_a = static_cast<const unsigned short*>(args.a);
    const unsigned short* from_b = static_cast<const unsigned short*>(args.b);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const unsigned short* at = from_a + (g + 8 * (i & 1)) * 16 + 2 * t + 8 * (i / 2);
        a[i] = at[0] | u32(at[1]) << 16;
    }
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const unsigned short* at = from_b + g * 16 + 2 * t + 8 * i;
        b[i] = at[0] | u32(at[1]) << 16;
    }
}
DEVICE void store_tile(const ProbeArgs& args, const float (&d)[4]) {
    const u32 g = threadIdx.x / 4, t = threadIdx.x % 4;
    float* out = static_cast<float*>(args.out);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) out[(g + 8 * (i / 2)) * 8 + 2 * t + (i & 1)] = d[i];
}
KERNEL(probe_mma_f16, ProbeArgs, 32) {
    u32 a[4], b[2];
    fragments16(args, a, b);
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_f16(d, a, b);
    mma_f16(d, a, b);
    store_tile(args, d);
}
KERNEL(probe_mma_bf16, ProbeArgs, 32) {
    u32 a[4], b[2];
    fragments16(args, a, b);
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_bf16(d, a, b);
    mma_bf16(d, a, b);
    store_tile(args, d);
}
KERNEL(probe_mma_tf32, ProbeArgs, 32) {
    const u32 g = threadIdx.x / 4, t = threadIdx.x % 4;
    const float* from_a = static_cast<const float*>(args.a);
    const float* from_b = static_cast<const float*>(args.b);
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (u32 k = 0; k < 16; k += 8) {
        u32 a[4], b[2];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) a[i] = to_tf32(from_a[(g + 8 * (i & 1)) * 16 + k + t + 4 * (i / 2)]);
#pragma unroll
        for (u32 i = 0; i < 2; ++i) b[i] = to_tf32(from_b[g * 16 + k + t + 4 * i]);
        mma_tf32(d, a, b);
    }
    store_tile(args, d);
}

// out[0] += the sum of `count` numbers a[u32], and out[1] counts blocks modulo gridDim; out[2] collects their bits.
KERNEL(probe_sum, ProbeArgs, 128) {
    SHARED_ARRAY(u32, partial, 4);
    const u32* from = static_cast<const u32*>(args.a);
    u32* out = static_cast<u32*>(args.out);
    u32 sum = 0;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < args.count; i += gridDim.x * blockDim.x) sum += from[i];
#pragma unroll
    for (u32 bit = 16; bit; bit /= 2) sum += __shfl_xor_sync(~0u, sum, bit);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
#ifndef PLANT_MISSING_BARRIER
    __syncthreads();
#endif
    if (threadIdx.x == 0) {
        sum = 0;
        for (u32 warp = 0; warp < 4; ++warp) sum += partial[warp];
        atomicAdd(out, sum);
        atomicOr(out + 2, 1u << blockIdx.x);
        __threadfence();
        atomicInc(out + 1, gridDim.x - 1);
    }
}

// out = the 16-bit or f32 elements of a, each rounded from f32 (b): what = 0 f16, 1 bf16, 2 tf32, and back to f32.
KERNEL(probe_round, ProbeArgs, 64) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= args.count) return;
    const float value = static_cast<const float*>(args.a)[i];
    float* out = static_cast<float*>(args.out);
    out[3 * i] = to_float(from_float<f16>(value));
    out[3 * i + 1] = to_float(from_float<bf16>(value));
    const u32 bits = to_tf32(value);
    out[3 * i + 2] = *reinterpret_cast<const float*>(&bits);
}

// out[i] = a[i] reversed within each block of 256 f32, by two groups of asynchronous copies; elements from `count` are zero.
KERNEL(probe_copy, ProbeArgs, 32) {
    SHARED_ARRAY(float, tile, 256);
    const float* from = static_cast<const float*>(args.a) + blockIdx.x * 256;
    const u32 lane = threadIdx.x, here = args.count - min(args.count, blockIdx.x * 256);
    copy16_async(tile + 4 * lane, from + 4 * lane, 4 * lane < here);
    copy_commit();
    copy16_async(tile + 128 + 4 * lane, from + 128 + 4 * lane, 128 + 4 * lane < here);
    copy_commit();
    Pack<float>* out = reinterpret_cast<Pack<float>*>(static_cast<float*>(args.out) + blockIdx.x * 256);
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
#ifndef PLANT_MISSING_WAIT
        if (half == 0) copy_wait<1>();
        else copy_wait<0>();
#endif
        __syncwarp();
        Pack<float> pack = load16(tile + 128 * half + 4 * (31 - lane)), reversed;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) reversed.e[i] = pack.e[3 - i];
        store16(reinterpret_cast<float*>(out + 32 * (1 - half) + lane), reversed);
    }
}

// out[4 i ..] = the block of Philox with the 64-bit key a[0] and the counter (i, count, wrong, 3).
KERNEL(probe_philox, ProbeArgs, 32) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    u32 words[4];
    philox4(static_cast<const u64*>(args.a)[0], i, args.count, args.wrong, 3, words);
#pragma unroll
    for (u32 lane = 0; lane < 4; ++lane) static_cast<u32*>(args.out)[4 * i + lane] = words[lane];
}

// One mistake a launch. None is harmless on a GPU.
KERNEL(probe_wrong, ProbeArgs, 64) {
    SHARED_ARRAY(float, tile, 64);
    float* out = static_cast<float*>(args.out);
    const u32 i = threadIdx.x;
    tile[i] = float(i);
    switch (args.wrong) {
    case 1: // a barrier that half of the threads do not reach
        if (i < 32) __syncthreads();
        break;
    case 2: // two barriers that are not the same
        if (i < 32) __syncthreads();
        else __syncthreads();
        break;
    case 3: // a shuffle that names lanes that do not come
        if (i % 2) out[i] = __shfl_xor_sync(~0u, tile[i], 2);
        break;
    case 4: // a shuffle by a lane that is not of its mask
        out[i] = __shfl_sync(0xffffu, tile[i], 0);
        break;
    case 5: // a shuffle from a lane that is not of its mask
        if (i % 2) out[i] = __shfl_sync(0xaaaaaaaau, tile[i], 0);
        break;
    case 6: // two operations of one warp that are not the same
        if (i % 2) __syncwarp();
        else out[i] = __shfl_sync(~0u, tile[i], 0);
        break;
    case 7: // 16 bytes that are not on a boundary
        store16(out + 4 * i, load16(tile + 1));
        break;
    case 8: // shared memory before it is written
        out[i] = tile[i ^ 32];
        break;
    }
}

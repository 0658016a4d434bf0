// Seeded normals: the counter layout and the formulas of src/diffusion/noise.rs.
#pragma once
#include "device.cuh"

// One block of Philox4x32-10 (Salmon et al. 2011, section 3.3).
DEVICE void philox4(u64 key, u32 c0, u32 c1, u32 c2, u32 c3, u32 (&out)[4]) {
    u32 k0 = u32(key), k1 = u32(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const u32 high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// The four normals of one block, in f64 (Box and Muller 1958).
DEVICE void normal4(u64 key, u32 c0, u32 c1, u32 c2, u32 c3, double (&out)[4]) {
    constexpr double WORD = 1.0 / 4294967296.0;
    u32 words[4];
    philox4(key, c0, c1, c2, c3, words);
#pragma unroll
    for (int pair = 0; pair < 4; pair += 2) {
        // The + 1 keeps the logarithm finite.
        const double radius = sqrt(-2.0 * log((double(words[pair]) + 1.0) * WORD));
        double sine, cosine;
        sincospi(2.0 * WORD * double(words[pair + 1]), &sine, &cosine);
        out[pair] = radius * cosine;
        out[pair + 1] = radius * sine;
    }
}

// Elements 0 to `count` of one draw of an image's noise.
struct NormalsArgs {
    float* out;
    u64 seed;
    u64 count;
    u32 image;
    u32 draw;
};

// One block of four elements a thread.
KERNEL(normals, NormalsArgs, 128) {
    const u64 block = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (4 * block >= args.count) return;
    double values[4];
    normal4(args.seed, u32(block), args.image, args.draw, 0, values);
#pragma unroll
    for (u32 lane = 0; lane < 4; ++lane)
        if (4 * block + lane < args.count) args.out[4 * block + lane] = float(values[lane]);
}

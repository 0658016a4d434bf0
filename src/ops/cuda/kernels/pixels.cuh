// From values in [-1, 1] to bytes: 127.5 x + 127.5, rounded; values outside are clamped.
#pragma once
#include "device.cuh"

struct PixelsArgs {
  u64 x;  // f32 [elements, up to a multiple of 16], channels last
  u64 y;  // u8 of the same shape
  u32 elements, padding;
};

constexpr u32 PIXELS_THREADS = 128;

// Grid: sixteen elements a thread.
KERNEL(pixels, PixelsArgs, PIXELS_THREADS) {
  const u32 at = (blockIdx.x * PIXELS_THREADS + threadIdx.x) * 16u;
  if (at >= args.elements) return;
  const float* x = reinterpret_cast<const float*>(args.x) + at;
  Pack<u8> out;
#pragma unroll
  for (u32 i = 0; i < 16; i += 4) {
    const Pack<float> values = load16(x + i);
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      // In f64, where a half is a half: the CPU rounds the same number.
      const double value = round(fma((double)values.e[e], 127.5, 127.5));
      out.e[i + e] = (u8)fmin(fmax(value, 0.0), 255.0);
    }
  }
  store16(reinterpret_cast<u8*>(args.y) + at, out);
}

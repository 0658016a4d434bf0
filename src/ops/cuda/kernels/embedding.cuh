// The embedding of noise level and class that the mapping layers begin with: sines and cosines of the level, a row a class, or
// their sum.
#pragma once
#include "device.cuh"

struct EmbeddingArgs {
  u64 noise;        // f32 [samples]: c_noise
  u64 classes;      // u32 [samples]: the row of `labels`
  u64 frequencies;  // f32 [half]; not read where half is 0
  u64 labels;       // f32 [classes + 1, width], the last row for no class; or 0
  u64 y;            // T [samples, pitch]
  u32 half;  // half the width, or 0 for the class's row alone
  u32 width, pitch;
  u32 cosines_first;
};

constexpr u32 EMBEDDING_THREADS = 128;

// Grid: samples.
template <typename T> __device__ __forceinline__ void embedding_body(const EmbeddingArgs& args) {
  const u32 sample = blockIdx.x, width = args.width;
  const float noise = reinterpret_cast<const float*>(args.noise)[sample];
  const float* frequencies = reinterpret_cast<const float*>(args.frequencies);
  const float* labels = reinterpret_cast<const float*>(args.labels);
  if (labels) labels += (u64)reinterpret_cast<const u32*>(args.classes)[sample] * width;
  T* y = reinterpret_cast<T*>(args.y) + (u64)sample * args.pitch;
  for (u32 i = threadIdx.x; i < args.pitch; i += EMBEDDING_THREADS) {
    float value = 0.0f;
    if (i < 2 * args.half) {
      const bool second = i >= args.half;
      const float angle = noise * frequencies[second ? i - args.half : i];
      value = second == (args.cosines_first != 0) ? sinf(angle) : cosf(angle);
    }
    if (labels && i < width) value += labels[i];
    y[i] = from_float<T>(value);
  }
}

KERNEL(embedding_f32, EmbeddingArgs, EMBEDDING_THREADS) { embedding_body<float>(args); }
KERNEL(embedding_f16, EmbeddingArgs, EMBEDDING_THREADS) { embedding_body<f16>(args); }
KERNEL(embedding_bf16, EmbeddingArgs, EMBEDDING_THREADS) { embedding_body<bf16>(args); }

// Between images and sequences of tokens (Dosovitskiy et al. 2021): `tokens` puts vectors before the pixels of a map and adds
// the positions, `unpatch` makes an image of the patches that tokens hold.
#pragma once
#include "device.cuh"

struct TokensArgs {
  u64 front[2];   // T [samples, pitch] each: the first tokens
  u64 x;          // T [samples, pixels, pitch]: the tokens after them
  u64 positions;  // f32 [fronts + pixels, pitch], zeros behind the channels
  u64 y;          // T [samples, fronts + pixels, pitch]
  u32 fronts;     // 0 to 2
  u32 pixels, pitch;
  u32 padding;
};

constexpr u32 TOKENS_THREADS = 256;

// Grid: vectors of a sample, 1, samples.
template <typename T> __device__ __forceinline__ void tokens_body(const TokensArgs& args) {
  constexpr u32 V = Pack<T>::V;
  const u32 vectors = args.pitch / V, tokens = args.fronts + args.pixels;
  const u32 index = blockIdx.x * TOKENS_THREADS + threadIdx.x, sample = blockIdx.z;
  if (index >= tokens * vectors) return;
  const u32 token = index / vectors, at = index % vectors * V;
  const T* from = reinterpret_cast<const T*>(token == 0 ? args.front[0] : args.front[1]) + (u64)sample * args.pitch;
  if (token >= args.fronts)
    from = reinterpret_cast<const T*>(args.x) + ((u64)sample * args.pixels + token - args.fronts) * args.pitch;
  const float* position = reinterpret_cast<const float*>(args.positions) + (u64)token * args.pitch + at;
  const Pack<T> values = load16(from + at);
  Pack<T> out;
#pragma unroll
  for (u32 e = 0; e < V; e += 4) {
    const Pack<float> more = load16(position + e);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) out.e[e + i] = from_float<T>(to_float(values.e[e + i]) + more.e[i]);
  }
  store16(reinterpret_cast<T*>(args.y) + ((u64)sample * tokens + token) * args.pitch + at, out);
}

KERNEL(tokens_f32, TokensArgs, TOKENS_THREADS) { tokens_body<float>(args); }
KERNEL(tokens_f16, TokensArgs, TOKENS_THREADS) { tokens_body<f16>(args); }
KERNEL(tokens_bf16, TokensArgs, TOKENS_THREADS) { tokens_body<bf16>(args); }

struct UnpatchArgs {
  u64 x;  // T [samples, fronts + rows * columns, x_pitch]: tokens of patch * patch * channels, row by row, channels fastest
  u64 y;  // T [samples, rows * patch, columns * patch, y_pitch], zeros behind `channels`
  u32 fronts;  // tokens that are no patches
  u32 rows, columns, patch, channels;
  u32 x_pitch, y_pitch;
  u32 padding;
};

constexpr u32 UNPATCH_THREADS = 256;

// Grid: vectors of a sample's image, 1, samples.
template <typename T> __device__ __forceinline__ void unpatch_body(const UnpatchArgs& args) {
  constexpr u32 V = Pack<T>::V;
  const u32 vectors = args.y_pitch / V, width = args.columns * args.patch, pixels = args.rows * args.patch * width;
  const u32 index = blockIdx.x * UNPATCH_THREADS + threadIdx.x, sample = blockIdx.z;
  if (index >= pixels * vectors) return;
  const u32 pixel = index / vectors, at = index % vectors * V;
  const u32 oy = pixel / width, ox = pixel % width;
  const u32 token = args.fronts + oy / args.patch * args.columns + ox / args.patch;
  const u32 within = oy % args.patch * args.patch + ox % args.patch;
  const u32 tokens = args.fronts + args.rows * args.columns;
  // A pixel's channels begin anywhere: one by one.
  const T* x = reinterpret_cast<const T*>(args.x) + ((u64)sample * tokens + token) * args.x_pitch + within * args.channels;
  Pack<T> out;
#pragma unroll
  for (u32 e = 0; e < V; ++e) out.e[e] = at + e < args.channels ? x[at + e] : from_float<T>(0.0f);
  store16(reinterpret_cast<T*>(args.y) + ((u64)sample * pixels + pixel) * args.y_pitch + at, out);
}

KERNEL(unpatch_f32, UnpatchArgs, UNPATCH_THREADS) { unpatch_body<float>(args); }
KERNEL(unpatch_f16, UnpatchArgs, UNPATCH_THREADS) { unpatch_body<f16>(args); }
KERNEL(unpatch_bf16, UnpatchArgs, UNPATCH_THREADS) { unpatch_body<bf16>(args); }

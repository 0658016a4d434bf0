// LayerNorm over the channels of each pixel (Ba et al. 2016, eq. 4), the variance over all channels.
//
// A warp has a pixel and goes through its channels three times: for the mean, for the squared distances to it, and to write.
// A pixel is a few kilobytes, so the second and third time they are in the first level of cache. Sums are taken in fixed
// places and joined in a fixed order, so a pixel's bits depend on nothing but the pixel.
#pragma once
#include "device.cuh"

struct LayerNormArgs {
  u64 x;      // T [pixels, pitch], zeros behind `channels`
  u64 scale;  // f32 [pitch], zeros behind `channels`
  u64 shift;  // f32 [pitch], zeros behind `channels`
  u64 y;      // T [pixels, pitch], zeros behind `channels`
  u32 pixels;  // of all samples
  u32 channels, pitch;
  float eps;
};

constexpr u32 LAYER_NORM_THREADS = 128;
constexpr u32 LAYER_NORM_PIXELS = LAYER_NORM_THREADS / 32;  // of a block

// Grid: blocks of pixels.
template <typename T> __device__ __forceinline__ void layer_norm_body(const LayerNormArgs& args) {
  constexpr u32 V = Pack<T>::V;
  const u32 pixel = blockIdx.x * LAYER_NORM_PIXELS + threadIdx.x / 32u, lane = threadIdx.x & 31u;
  if (pixel >= args.pixels) return;
  const T* x = reinterpret_cast<const T*>(args.x) + (u64)pixel * args.pitch;
  T* y = reinterpret_cast<T*>(args.y) + (u64)pixel * args.pitch;
  const float* scale = reinterpret_cast<const float*>(args.scale);
  const float* shift = reinterpret_cast<const float*>(args.shift);
  const float count = (float)args.channels;

  float sum = 0.0f;
  for (u32 at = lane * V; at < args.pitch; at += 32u * V) {
    const Pack<T> values = load16(x + at);
#pragma unroll
    for (u32 e = 0; e < V; ++e) sum += to_float(values.e[e]);
  }
  const float mean = warp_sum(sum) / count;
  float squares = 0.0f;
  for (u32 at = lane * V; at < args.pitch; at += 32u * V) {
    const Pack<T> values = load16(x + at);
#pragma unroll
    for (u32 e = 0; e < V; ++e) {
      const float d = at + e < args.channels ? to_float(values.e[e]) - mean : 0.0f;
      squares = fmaf(d, d, squares);
    }
  }
  const float deviation = sqrtf(warp_sum(squares) / count + args.eps);
  for (u32 at = lane * V; at < args.pitch; at += 32u * V) {
    const Pack<T> values = load16(x + at);
    Pack<T> out;
#pragma unroll
    for (u32 e = 0; e < V; e += 4) {
      const Pack<float> factor = load16(scale + at + e), offset = load16(shift + at + e);
#pragma unroll
      for (u32 i = 0; i < 4; ++i)
        out.e[e + i] = from_float<T>(fmaf((to_float(values.e[e + i]) - mean) / deviation, factor.e[i], offset.e[i]));
    }
    store16(y + at, out);
  }
}

KERNEL(layer_norm_f32, LayerNormArgs, LAYER_NORM_THREADS) { layer_norm_body<float>(args); }
KERNEL(layer_norm_f16, LayerNormArgs, LAYER_NORM_THREADS) { layer_norm_body<f16>(args); }
KERNEL(layer_norm_bf16, LayerNormArgs, LAYER_NORM_THREADS) { layer_norm_body<bf16>(args); }

// From one or two maps to one, in a pass: GroupNorm applied, SiLU, concatenation, EDM's filtered resampling by 2 (Karras et al.
// 2022, `resample_filter`), and the sum with another map.
//
// y = (filter(act(slope * x + offset)) + residual) * scale, the channels of the second map behind those of the first.
#pragma once
#include "device.cuh"

constexpr u32 MAP_MAX_TAPS = 8;
enum ElementwiseFilter : u32 { ELEMENTWISE_KEEP = 0, ELEMENTWISE_DOWN = 1, ELEMENTWISE_UP = 2 };

struct ElementwiseArgs {
  u64 x[2];      // T [samples, height, width, widths[i]]
  u64 affine;    // f32 [samples, 2, widths[0] + widths[1]]: slopes, then offsets; or 0
  u64 residual;  // T like y, or 0
  u64 y;         // T [samples, out_height, out_width, widths[0] + widths[1]]
  u32 widths[2];
  u32 height, width, out_height, out_width;
  u32 filter;  // a ElementwiseFilter
  u32 taps, pad;
  u32 silu;
  float weights[MAP_MAX_TAPS];  // along one axis, gain included
  float scale;
  u32 padding;
};

constexpr u32 ELEMENTWISE_THREADS = 256;

// The input that tap `i` joins to output `o`; false where there is none.
__device__ __forceinline__ bool elementwise_input(u32 filter, u32 o, u32 n, u32 i, u32 pad, u32& at) {
  if (filter == ELEMENTWISE_KEEP) { at = o; return true; }
  if (filter == ELEMENTWISE_DOWN) {
    at = 2 * o + i - pad;  // wraps to a large number below 0
    return at < n;
  }
  const u32 twice = o + pad - i;
  at = twice / 2;
  return o + pad >= i && (twice & 1u) == 0 && at < n;
}

// Grid: output vectors of a sample, 1, samples.
template <typename T> __device__ __forceinline__ void elementwise_body(const ElementwiseArgs& args) {
  constexpr u32 V = Pack<T>::V;
  const u32 width = args.widths[0] + args.widths[1], vectors = width / V;
  const u32 index = blockIdx.x * ELEMENTWISE_THREADS + threadIdx.x, sample = blockIdx.z;
  if (index >= args.out_height * args.out_width * vectors) return;
  const u32 pixel = index / vectors, at = index % vectors * V;
  const u32 oy = pixel / args.out_width, ox = pixel % args.out_width;
  const u32 part = at < args.widths[0] ? 0u : 1u;
  const u32 stride = part ? args.widths[1] : args.widths[0];
  const T* x = reinterpret_cast<const T*>(part ? args.x[1] : args.x[0]) + (u64)sample * args.height * args.width * stride +
               (at - (part ? args.widths[0] : 0u));
  float slope[V], offset[V], sum[V];
#pragma unroll
  for (u32 e = 0; e < V; ++e) { slope[e] = 1.0f; offset[e] = 0.0f; sum[e] = 0.0f; }
  if (args.affine) {
    const float* affine = reinterpret_cast<const float*>(args.affine) + (u64)sample * 2 * width + at;
#pragma unroll
    for (u32 e = 0; e < V; e += 4) {
      const Pack<float> s = load16(affine + e), o = load16(affine + width + e);
#pragma unroll
      for (u32 i = 0; i < 4; ++i) { slope[e + i] = s.e[i]; offset[e + i] = o.e[i]; }
    }
  }
  const u32 taps = args.filter == ELEMENTWISE_KEEP ? 1u : args.taps;
  for (u32 i = 0; i < taps; ++i) {
    u32 y;
    if (!elementwise_input(args.filter, oy, args.height, i, args.pad, y)) continue;
    for (u32 j = 0; j < taps; ++j) {
      u32 column;
      if (!elementwise_input(args.filter, ox, args.width, j, args.pad, column)) continue;
      const float weight = args.filter == ELEMENTWISE_KEEP ? 1.0f : args.weights[i] * args.weights[j];
      const Pack<T> values = load16(x + ((u64)y * args.width + column) * stride);
#pragma unroll
      for (u32 e = 0; e < V; ++e) {
        float value = fmaf(to_float(values.e[e]), slope[e], offset[e]);
        if (args.silu) value = silu(value);
        sum[e] = fmaf(weight, value, sum[e]);
      }
    }
  }
  const u64 place = ((u64)sample * args.out_height * args.out_width + pixel) * width + at;
  if (args.residual) {
    const Pack<T> more = load16(reinterpret_cast<const T*>(args.residual) + place);
#pragma unroll
    for (u32 e = 0; e < V; ++e) sum[e] += to_float(more.e[e]);
  }
  Pack<T> out;
#pragma unroll
  for (u32 e = 0; e < V; ++e) out.e[e] = from_float<T>(sum[e] * args.scale);
  store16(reinterpret_cast<T*>(args.y) + place, out);
}

KERNEL(elementwise_f32, ElementwiseArgs, ELEMENTWISE_THREADS) { elementwise_body<float>(args); }
KERNEL(elementwise_f16, ElementwiseArgs, ELEMENTWISE_THREADS) { elementwise_body<f16>(args); }
KERNEL(elementwise_bf16, ElementwiseArgs, ELEMENTWISE_THREADS) { elementwise_body<bf16>(args); }

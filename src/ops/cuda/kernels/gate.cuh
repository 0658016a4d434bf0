// One half of the channels through GELU, by which the other half is multiplied (GEGLU, Shazeer 2020): y = a gelu(b).
#pragma once
#include "device.cuh"

struct GateArgs {
  u64 x;  // T [pixels, 2, pitch]: a, then b, zeros behind their channels
  u64 y;  // T [pixels, pitch]
  u64 vectors;  // of y, 16 bytes each
  u32 pitch, padding;
};

constexpr u32 GATE_THREADS = 256;

// Grid: vectors.
template <typename T> __device__ __forceinline__ void gate_body(const GateArgs& args) {
  constexpr u32 V = Pack<T>::V;
  const u64 index = (u64)blockIdx.x * GATE_THREADS + threadIdx.x;
  if (index >= args.vectors) return;
  const u32 of_pixel = args.pitch / V;
  const u64 pixel = index / of_pixel;
  const T* x = reinterpret_cast<const T*>(args.x) + pixel * 2 * args.pitch + index % of_pixel * V;
  const Pack<T> a = load16(x), b = load16(x + args.pitch);
  Pack<T> out;
#pragma unroll
  for (u32 e = 0; e < V; ++e) out.e[e] = from_float<T>(to_float(a.e[e]) * gelu(to_float(b.e[e])));
  store16(reinterpret_cast<T*>(args.y) + index * V, out);
}

KERNEL(gate_f32, GateArgs, GATE_THREADS) { gate_body<float>(args); }
KERNEL(gate_f16, GateArgs, GATE_THREADS) { gate_body<f16>(args); }
KERNEL(gate_bf16, GateArgs, GATE_THREADS) { gate_body<bf16>(args); }

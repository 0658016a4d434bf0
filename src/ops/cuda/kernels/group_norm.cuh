// GroupNorm's statistics over any channel -> group table, as one slope and one offset a channel and sample; `map` applies them.
//
// (x - mean_g) / sqrt(var_g + eps) * scale + shift (Wu and He 2018, eq. 1 to 3) is slope * x + offset, and so it is after a scale
// and a shift by sample (Perez et al. 2018, "FiLM"). The blocks of a sample
// sum up chunks of pixels by channel; the last of them to end joins the chunks, then the channels of each group. Sums are
// taken in fixed places and joined in a fixed order, so a sample's bits do not depend on its batch.
#pragma once
#include "device.cuh"

struct MomentsArgs {
  u64 x[2];      // T [samples, pixels, widths[i]]: the channels of the second follow those of the first
  u64 scale;     // f32 [channels]
  u64 shift;     // f32 [channels]
  u64 members;   // u32 [channels]: the channels of the first group, then those of the second ...
  u64 starts;    // u32 [groups + 1]: where each group's begin
  u64 sums;      // f32 [samples, chunks, 2, widths[0] + widths[1]]: scratch
  u64 counters;  // u32 [samples]: zeros; zeros again afterwards
  u64 affine;    // f32 [samples, 2, widths[0] + widths[1]]: slopes, then offsets; zeros where there is no channel
  u64 film_scale;  // T [samples, film_pitch]: s of `x (1 + s) + t` after the norm, by channel; or 0
  u64 film_shift;  // T [samples, film_pitch]: t
  u32 channels[2];
  u32 widths[2];  // channels up to a multiple of 8
  u32 pixels, chunk, chunks, groups;
  float eps;
  u32 film_pitch;
};

constexpr u32 MOMENTS_THREADS = 256;

// Grid: chunks, 1, samples.
template <typename T> __device__ __forceinline__ void moments_body(const MomentsArgs& args) {
  constexpr u32 V = Pack<T>::V;
  SHARED_ARRAY(float, shared, MOMENTS_THREADS * 2 * V);
  SHARED_ARRAY(u32, last, 1);
  const u32 thread = threadIdx.x, sample = blockIdx.z, width = args.widths[0] + args.widths[1];
  const u32 vectors = width / V, begin = blockIdx.x * args.chunk;
  const u32 end = min(begin + args.chunk, args.pixels);
  float* sums = reinterpret_cast<float*>(args.sums) + (u64)sample * args.chunks * 2 * width;

  // Lanes side by side in a vector of channels; more than the block has threads go in turns.
  const u32 lanes = vectors < MOMENTS_THREADS ? MOMENTS_THREADS / vectors : 1;
  for (u32 base = 0; base < vectors; base += MOMENTS_THREADS) {
    const u32 here = min(vectors - base, MOMENTS_THREADS), lane = thread / here;
    float sum[V], squares[V];
#pragma unroll
    for (u32 e = 0; e < V; ++e) sum[e] = squares[e] = 0.0f;
    const u32 at = (base + thread % here) * V;
    const u32 part = at < args.widths[0] ? 0u : 1u;
    if (lane < lanes) {
      const u32 stride = part ? args.widths[1] : args.widths[0];
      const T* x = reinterpret_cast<const T*>(part ? args.x[1] : args.x[0]) + (u64)sample * args.pixels * stride +
                   (at - (part ? args.widths[0] : 0u));
      // Differences to the sample's first pixel: a mean that is large against the spread costs no bits.
      const Pack<T> origin = load16(x);
      for (u32 pixel = begin + lane; pixel < end; pixel += lanes) {
        const Pack<T> values = load16(x + (u64)pixel * stride);
#pragma unroll
        for (u32 e = 0; e < V; ++e) {
          const float d = to_float(values.e[e]) - to_float(origin.e[e]);
          sum[e] += d;
          squares[e] = fmaf(d, d, squares[e]);
        }
      }
    }
    __syncthreads();  // the turn before still reads
#pragma unroll
    for (u32 e = 0; e < V; ++e) {
      shared[(e * 2 + 0) * MOMENTS_THREADS + thread] = sum[e];
      shared[(e * 2 + 1) * MOMENTS_THREADS + thread] = squares[e];
    }
    __syncthreads();
    if (thread < here) {
      float* out = sums + (u64)blockIdx.x * 2 * width + at;
#pragma unroll
      for (u32 e = 0; e < V; ++e) {
        float total[2] = {0.0f, 0.0f};
        for (u32 l = 0; l < lanes; ++l) {
          total[0] += shared[(e * 2 + 0) * MOMENTS_THREADS + l * here + thread];
          total[1] += shared[(e * 2 + 1) * MOMENTS_THREADS + l * here + thread];
        }
        out[e] = total[0];
        out[width + e] = total[1];
      }
    }
  }

  // The sums must be seen by whoever counts the last block (CUDA's threadFenceReduction pattern).
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    u32* counter = reinterpret_cast<u32*>(args.counters) + sample;
    last[0] = atomicInc(counter, args.chunks - 1) == args.chunks - 1;
  }
  __syncthreads();
  if (!last[0]) return;
  __threadfence();

  // By channel: the mean, and the sum of squared distances to it. They take the place of the first chunk's sums.
  const float count = (float)args.pixels;
  for (u32 at = thread; at < width; at += MOMENTS_THREADS) {
    const u32 part = at < args.widths[0] ? 0u : 1u;
    const u32 stride = part ? args.widths[1] : args.widths[0];
    const T* x = reinterpret_cast<const T*>(part ? args.x[1] : args.x[0]) + (u64)sample * args.pixels * stride;
    // Volatile: other blocks have written them, and the first level of cache does not know.
    const volatile float* chunks = sums;
    double total[2] = {0.0, 0.0};
    for (u32 chunk = 0; chunk < args.chunks; ++chunk) {
      total[0] += (double)chunks[(u64)chunk * 2 * width + at];
      total[1] += (double)chunks[((u64)chunk * 2 + 1) * width + at];
    }
    const double mean = total[0] / (double)args.pixels;
    sums[at] = (float)(mean + (double)to_float(x[at - (part ? args.widths[0] : 0u)]));
    sums[width + at] = (float)fma(-mean, total[0], total[1]);
  }
  float* slope = reinterpret_cast<float*>(args.affine) + (u64)sample * 2 * width;
  float* offset = slope + width;
  for (u32 at = thread; at < width; at += MOMENTS_THREADS) {
    const bool meant = at < args.widths[0] ? at < args.channels[0] : at - args.widths[0] < args.channels[1];
    if (!meant) slope[at] = offset[at] = 0.0f;
  }
  __syncthreads();

  // A warp a group.
  const u32* members = reinterpret_cast<const u32*>(args.members);
  const u32* starts = reinterpret_cast<const u32*>(args.starts);
  const float* scale = reinterpret_cast<const float*>(args.scale);
  const float* shift = reinterpret_cast<const float*>(args.shift);
  const T* film_scale = reinterpret_cast<const T*>(args.film_scale) + (u64)sample * args.film_pitch;
  const T* film_shift = reinterpret_cast<const T*>(args.film_shift) + (u64)sample * args.film_pitch;
  for (u32 group = thread >> 5; group < args.groups; group += MOMENTS_THREADS / 32) {
    const u32 from = starts[group], to = starts[group + 1], size = to - from;
    float mean = 0.0f, spread = 0.0f;
    for (u32 i = from + (thread & 31u); i < to; i += 32u) {
      const u32 channel = members[i], at = channel < args.channels[0] ? channel : channel - args.channels[0] + args.widths[0];
      mean += sums[at];
    }
    mean = warp_sum(mean) / (float)size;
    for (u32 i = from + (thread & 31u); i < to; i += 32u) {
      const u32 channel = members[i], at = channel < args.channels[0] ? channel : channel - args.channels[0] + args.widths[0];
      const float d = sums[at] - mean;
      spread += fmaf(count * d, d, sums[width + at]);
    }
    const float deviation = sqrtf(warp_sum(spread) / (count * (float)size) + args.eps);
    for (u32 i = from + (thread & 31u); i < to; i += 32u) {
      const u32 channel = members[i], at = channel < args.channels[0] ? channel : channel - args.channels[0] + args.widths[0];
      float factor = scale[channel] / deviation, constant = fmaf(-mean, factor, shift[channel]);
      if (args.film_scale) {
        const float more = 1.0f + to_float(film_scale[channel]);
        factor *= more;
        constant = fmaf(constant, more, to_float(film_shift[channel]));
      }
      slope[at] = factor;
      offset[at] = constant;
    }
  }
}

KERNEL(moments_f32, MomentsArgs, MOMENTS_THREADS) { moments_body<float>(args); }
KERNEL(moments_f16, MomentsArgs, MOMENTS_THREADS) { moments_body<f16>(args); }
KERNEL(moments_bf16, MomentsArgs, MOMENTS_THREADS) { moments_body<bf16>(args); }

// A solver's step, from the network's output to its next input, in one pass over memory.
//
// With F the network's output, guided by w (Ho and Salimans 2022): D = c_skip x + c_out (F_u + w (F_c - F_u)) is the denoised image
// (Karras et al. 2022, eq. 7); or D_u + w (D - D_u), with a D_u that another call has made. Every step of every solver is linear in the image x, D and what it remembers: the array m and what
// m was one and two changes before, m1 and m2 (`diffusion::solver::Update`):
//
//   x' = a_x x + a_d D + a_m m + a_m1 m1 + a_m2 m2 + noise z      m' = b_x x + b_d D + b_m m      input = c_in x'
//
// Where a picture is known, x' is that instead, with the first noise of the image z0: known + level z0. Behind c_in x' the input of a
// network for inpainting has what stays as it is: a mask and a picture.
//
// z are the standard normals of (seed, image, draw, element). Each row of the batch has coefficients of its own: its image may be
// at another step of another plan. The first noise of an image is such a step without a network. Rows without an image are
// skipped.
#pragma once
#include "device.cuh"
#include "noise.cuh"

struct SamplerRow {
  u64 x;          // f32 [pixels up to a multiple of 4, channels]
  u64 memory[3];  // f32, like x: m, m1 and m2; each is read where its weight is not 0
  u64 newest;     // f32, like x: takes m', and may be one of them; or 0
  u64 estimate;   // f32, like x: takes D; or 0
  u64 input;      // T [pixels, pitch]: takes c_in x', then what is beside it, then zeros; or 0
  u64 known;      // f32, like x; or 0
  u64 mask;       // u32 [pixels]: 0 where it is known
  u64 beside;     // f32 [pixels, beside]
  u64 led;        // f32, like x: the denoised image that it is led away from; or 0
  u64 seed;
  u32 image, draw;
  u32 conditional, unconditional;  // rows of the network's output; the same without guidance
  float guidance, c_skip, c_out;
  float a_x, a_d, a_m[3], noise;
  float b_x, b_d, b_m;
  float c_in;
  float level;
};

struct SamplerArgs {
  u64 rows;    // SamplerRow [rows]
  u64 output;  // T [samples, pixels, 8], or 0: no network has run
  u64 faults;  // u32 [rows]: becomes 1 where D is not finite
  u32 pixels, channels;
  u32 beside;  // channels of what is beside the image, where it is the input of a network
  u32 padding;
};

constexpr u32 SAMPLER_THREADS = 128;
constexpr u32 SAMPLER_PIXELS = 4;  // of a thread: as many blocks of four normals as there are channels

template <typename T, u32 CHANNELS> __device__ __forceinline__ void sampler_step(const SamplerArgs& args) {
  constexpr u32 V = Pack<T>::V;
  const u32 pixel = (blockIdx.x * SAMPLER_THREADS + threadIdx.x) * SAMPLER_PIXELS;
  if (pixel >= args.pixels) return;
  const SamplerRow row = reinterpret_cast<const SamplerRow*>(args.rows)[blockIdx.y];
  if (row.x == 0) return;
  float* x = reinterpret_cast<float*>(row.x) + pixel * CHANNELS;
  float* newest = row.newest ? reinterpret_cast<float*>(row.newest) + pixel * CHANNELS : nullptr;
  float* estimate = row.estimate ? reinterpret_cast<float*>(row.estimate) + pixel * CHANNELS : nullptr;
  // All of an input is whole vectors of eight.
  const u32 pitch = (CHANNELS + args.beside + 7) / 8 * 8;
  T* input = reinterpret_cast<T*>(row.input) + (u64)pixel * pitch;
  const T* output = reinterpret_cast<const T*>(args.output);

  // Element e is channel e % CHANNELS of pixel e / CHANNELS.
  float f[SAMPLER_PIXELS * CHANNELS], z[SAMPLER_PIXELS * CHANNELS], next[SAMPLER_PIXELS * CHANNELS];
#pragma unroll
  for (u32 p = 0; p < SAMPLER_PIXELS; ++p) {
    const bool there = output && pixel + p < args.pixels;
    Pack<T> c, u;
    if (there) {
      c = load16(output + ((u64)row.conditional * args.pixels + pixel + p) * 8);
      u = load16(output + ((u64)row.unconditional * args.pixels + pixel + p) * 8);
    }
#pragma unroll
    for (u32 e = 0; e < CHANNELS; ++e) {
      const float with = there ? to_float(c.e[e]) : 0.0f, without = there ? to_float(u.e[e]) : 0.0f;
      // Without guidance both are the same row, to the bit.
      f[p * CHANNELS + e] = row.conditional == row.unconditional ? with : fmaf(row.guidance, with - without, without);
    }
  }
#pragma unroll
  for (u32 quad = 0; quad < CHANNELS; ++quad) {
    double normals[4] = {0.0, 0.0, 0.0, 0.0};
    if (row.noise != 0.0f) normal4(row.seed, pixel / SAMPLER_PIXELS * CHANNELS + quad, row.image, row.draw, 0, normals);
#pragma unroll
    for (u32 e = 0; e < 4; ++e) z[4 * quad + e] = (float)normals[e];
  }
  // What has no weight must not matter: an image that begins finds what another one left, which may be no number.
  const bool reads_x = row.a_x != 0.0f || row.b_x != 0.0f || row.c_skip != 0.0f;
  const bool reads[3] = {row.a_m[0] != 0.0f || row.b_m != 0.0f, row.a_m[1] != 0.0f, row.a_m[2] != 0.0f};
  bool finite = true;
#pragma unroll
  for (u32 quad = 0; quad < CHANNELS; ++quad) {
    Pack<float> now = load16(x + 4 * quad);
    Pack<float> before[3], then, kept, seen;
#pragma unroll
    for (u32 m = 0; m < 3; ++m) {
      if (reads[m]) before[m] = load16(reinterpret_cast<const float*>(row.memory[m]) + pixel * CHANNELS + 4 * quad);
#pragma unroll
      for (u32 e = 0; e < 4; ++e) before[m].e[e] = reads[m] ? before[m].e[e] : 0.0f;
    }
#pragma unroll
    for (u32 e = 0; e < 4; ++e) now.e[e] = reads_x ? now.e[e] : 0.0f;
    Pack<float> from;
    if (row.led) from = load16(reinterpret_cast<const float*>(row.led) + pixel * CHANNELS + 4 * quad);
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const float own = fmaf(row.c_out, f[4 * quad + e], row.c_skip * now.e[e]);
      const float d = row.led ? fmaf(row.guidance, own - from.e[e], from.e[e]) : own;
      finite = finite && fabsf(d) <= 3.402823466e38f;
      float sum = fmaf(row.a_d, d, row.a_x * now.e[e]);
#pragma unroll
      for (u32 m = 0; m < 3; ++m) sum = fmaf(row.a_m[m], before[m].e[e], sum);
      then.e[e] = fmaf(row.noise, z[4 * quad + e], sum);
      kept.e[e] = fmaf(row.b_m, before[0].e[e], fmaf(row.b_d, d, row.b_x * now.e[e]));
      seen.e[e] = d;
      next[4 * quad + e] = row.c_in * then.e[e];
    }
    store16(x + 4 * quad, then);
    if (newest) store16(newest + 4 * quad, kept);
    if (estimate) store16(estimate + 4 * quad, seen);
  }
  // Afterwards, when fewer registers are taken. What this thread has written it reads again.
  if (row.known) {
#pragma unroll
    for (u32 quad = 0; quad < CHANNELS; ++quad) {
      const Pack<float> known = load16(reinterpret_cast<const float*>(row.known) + pixel * CHANNELS + 4 * quad);
      Pack<float> then = load16(x + 4 * quad);
      double first[4] = {0.0, 0.0, 0.0, 0.0};
      if (row.level != 0.0f) normal4(row.seed, pixel / SAMPLER_PIXELS * CHANNELS + quad, row.image, 0, 0, first);
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        const u32 p = pixel + (4 * quad + e) / CHANNELS;
        if (p >= args.pixels || reinterpret_cast<const u32*>(row.mask)[p] != 0) continue;
        then.e[e] = fmaf(row.level, (float)first[e], known.e[e]);
        next[4 * quad + e] = row.c_in * then.e[e];
      }
      store16(x + 4 * quad, then);
    }
  }
  if (!finite) atomicOr(reinterpret_cast<u32*>(args.faults) + blockIdx.y, 1u);
  if (!row.input) return;
  const float* more = reinterpret_cast<const float*>(row.beside) + (u64)pixel * args.beside;
  const auto beside = [&](u32 channel, u32 p) {
    return channel < CHANNELS + args.beside ? more[p * args.beside + channel - CHANNELS] : 0.0f;
  };
#pragma unroll
  for (u32 p = 0; p < SAMPLER_PIXELS; ++p) {
    if (pixel + p >= args.pixels) break;
#pragma unroll
    for (u32 at = 0; at < 8; at += V) {
      Pack<T> values;
#pragma unroll
      for (u32 e = 0; e < V; ++e) {
        const float has = at + e < CHANNELS ? next[p * CHANNELS + (at + e) % CHANNELS] : beside(at + e, p);
        values.e[e] = from_float<T>(has);
      }
      store16(input + p * pitch + at, values);
    }
    for (u32 at = 8; at < pitch; at += V) {
      Pack<T> values;
#pragma unroll
      for (u32 e = 0; e < V; ++e) values.e[e] = from_float<T>(beside(at + e, p));
      store16(input + p * pitch + at, values);
    }
  }
}

// Grid: pixels of an image, rows.
template <typename T> __device__ __forceinline__ void sampler_body(const SamplerArgs& args) {
  // One, three or four: grey, colour, latents.
  if (args.channels == 1) sampler_step<T, 1>(args);
  else if (args.channels == 3) sampler_step<T, 3>(args);
  else sampler_step<T, 4>(args);
}

KERNEL(sampler_f32, SamplerArgs, SAMPLER_THREADS) { sampler_body<float>(args); }
KERNEL(sampler_f16, SamplerArgs, SAMPLER_THREADS) { sampler_body<f16>(args); }
KERNEL(sampler_bf16, SamplerArgs, SAMPLER_THREADS) { sampler_body<bf16>(args); }

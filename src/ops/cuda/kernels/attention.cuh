// Attention of every query to every key of its sample, without the matrix of scores in memory (Dao 2023, "FlashAttention-2").
//
// y = softmax(q k^T / sqrt(dim)) v in each head. A warp has 16 queries and goes through the keys 32 at a time: scores by tensor cores, the
// running maximum and sum of the softmax in registers, then the mixing of values by tensor cores, for which the scores' registers
// already are the operand. A block makes 128 channels of its 64 queries; more channels are more blocks, which repeat the scores.
#pragma once
#include "conv.cuh"

struct AttentionArgs {
  u64 q;  // T [samples, queries, q_stride]: of a query heads * pitch elements, those of a head side by side
  u64 k;  // T [samples, keys, kv_stride]: the same of a key
  u64 v;  // T [samples, keys, kv_stride]: the same of its value
  u64 y;  // T [samples, queries, pitch / 8, heads, 8], zeros behind `dim`: fewer offsets are a prefix of the channels
  u32 queries, keys, heads, dim, pitch;
  u32 q_stride, kv_stride;
  float scale;  // of the scores: 1 / sqrt(dim)
};

constexpr u32 ATTENTION_THREADS = 128;
constexpr u32 ATTENTION_QUERIES = 64;
constexpr u32 ATTENTION_KEYS = 32;
constexpr u32 ATTENTION_CHANNELS = 128;

// Words of the products of 16 queries with values at keys 8 j .. 8 j + 7 (tf32) or 16 j .. 16 j + 15 (16 bits): `p` as the scores lie in
// registers, `v` in shared memory, [key][pitch]. tf32 takes the keys of a fragment in the order 0 2 4 6 1 3 5 7, in which the
// scores' registers are its operand as they are; a sum does not mind.
template <typename T> struct Mix;
template <> struct Mix<float> {
  static constexpr u32 KEYS = 8, PITCH = ATTENTION_CHANNELS + 4;
  static __device__ __forceinline__ void scores(u32 (&a)[4], const float (&p)[4][4], u32 j) {
    a[0] = bits_of(p[j][0]);
    a[1] = bits_of(p[j][2]);
    a[2] = bits_of(p[j][1]);
    a[3] = bits_of(p[j][3]);
  }
  static __device__ __forceinline__ void values(u32 (&b)[2], const float* v, u32 j, u32 t, u32 column) {
    b[0] = bits_of(v[(8 * j + 2 * t) * PITCH + column]);
    b[1] = bits_of(v[(8 * j + 2 * t + 1) * PITCH + column]);
  }
};
template <typename T> struct Mix {
  static constexpr u32 KEYS = 16, PITCH = ATTENTION_CHANNELS + 8;
  static __device__ __forceinline__ u32 pair(T low, T high) { return bits_of(low) | bits_of(high) << 16; }
  static __device__ __forceinline__ void scores(u32 (&a)[4], const float (&p)[4][4], u32 j) {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const float* from = p[2 * j + (i >> 1)] + 2 * (i & 1u);
      a[i] = pair(from_float<T>(from[0]), from_float<T>(from[1]));
    }
  }
  static __device__ __forceinline__ void values(u32 (&b)[2], const T* v, u32 j, u32 t, u32 column) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const T* from = v + (16 * j + 8 * i + 2 * t) * PITCH + column;
      b[i] = pair(from[0], from[PITCH]);
    }
  }
};

// Grid: blocks of queries, blocks of channels of all heads, samples.
template <typename T> __device__ __forceinline__ void attention_body(const AttentionArgs& args) {
  constexpr u32 V = Pack<T>::V, PER = 4 / sizeof(T), DEPTH = CONV_WORDS * PER;
  SHARED_ARRAY(u32, q, ATTENTION_QUERIES * CONV_A_PITCH);
  SHARED_ARRAY(u32, k, ATTENTION_KEYS * CONV_A_PITCH);
  SHARED_ARRAY(u32, v_words, ATTENTION_KEYS * Mix<T>::PITCH / PER);
  T* v = reinterpret_cast<T*>(v_words);
  const u32 thread = threadIdx.x, lane = thread & 31u, warp = thread >> 5, g = lane >> 2, t = lane & 3u;
  const u32 tiles = (args.pitch + ATTENTION_CHANNELS - 1) / ATTENTION_CHANNELS;
  const u32 sample = blockIdx.z, first = blockIdx.x * ATTENTION_QUERIES;
  const u32 head = blockIdx.y / tiles, column0 = blockIdx.y % tiles * ATTENTION_CHANNELS;
  const T* queries = reinterpret_cast<const T*>(args.q) + (u64)sample * args.queries * args.q_stride + head * args.pitch;
  const T* keys = reinterpret_cast<const T*>(args.k) + (u64)sample * args.keys * args.kv_stride + head * args.pitch;
  const T* values = reinterpret_cast<const T*>(args.v) + (u64)sample * args.keys * args.kv_stride + head * args.pitch;

  float out[ATTENTION_CHANNELS / 8][4];
#pragma unroll
  for (u32 n = 0; n < ATTENTION_CHANNELS / 8; ++n)
#pragma unroll
    for (u32 i = 0; i < 4; ++i) out[n][i] = 0.0f;
  // Of this lane's two queries, g and g + 8; the four lanes of a query have the same.
  float most[2] = {-3.402823466e38f, -3.402823466e38f}, total[2] = {0.0f, 0.0f};

  for (u32 key0 = 0; key0 < args.keys; key0 += ATTENTION_KEYS) {
    float p[4][4];
#pragma unroll
    for (u32 n = 0; n < 4; ++n)
#pragma unroll
      for (u32 i = 0; i < 4; ++i) p[n][i] = 0.0f;
    for (u32 channel = 0; channel < args.pitch; channel += DEPTH) {
      __syncthreads();
      const u32 at = channel + (thread & 3u) * V;
#pragma unroll
      for (u32 i = 0; i < 2; ++i) {
        const u32 row = (thread >> 2) + 32u * i;
        const bool valid = first + row < args.queries && at < args.pitch;
        copy16_async(q + row * CONV_A_PITCH + (thread & 3u) * 4u,
                     valid ? queries + (u64)(first + row) * args.q_stride + at : queries, valid);
      }
      {
        const u32 row = thread >> 2;
        const bool valid = key0 + row < args.keys && at < args.pitch;
        copy16_async(k + row * CONV_A_PITCH + (thread & 3u) * 4u,
                     valid ? keys + (u64)(key0 + row) * args.kv_stride + at : keys, valid);
      }
      copy_commit();
      copy_wait<0>();
      __syncthreads();
#pragma unroll
      for (u32 word = 0; word < CONV_WORDS; word += 8) {
        u32 a[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) a[i] = q[(warp * 16u + g + (i & 1u) * 8u) * CONV_A_PITCH + word + t + (i >> 1) * 4u];
#pragma unroll
        for (u32 n = 0; n < 4; ++n) {
          const u32 b[2] = {k[(n * 8u + g) * CONV_A_PITCH + word + t], k[(n * 8u + g) * CONV_A_PITCH + word + t + 4u]};
          Product<T>::add(p[n], a, b);
        }
      }
    }
    // The values come while the softmax is computed.
    for (u32 i = thread; i < ATTENTION_KEYS * ATTENTION_CHANNELS / V; i += ATTENTION_THREADS) {
      const u32 row = i / (ATTENTION_CHANNELS / V), at = i % (ATTENTION_CHANNELS / V) * V;
      const bool valid = key0 + row < args.keys && column0 + at < args.pitch;
      copy16_async(v + row * Mix<T>::PITCH + at,
                   valid ? values + (u64)(key0 + row) * args.kv_stride + column0 + at : values, valid);
    }
    copy_commit();
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      float top = most[half];
#pragma unroll
      for (u32 n = 0; n < 4; ++n)
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
          const bool key = key0 + n * 8u + t * 2u + i < args.keys;
          float& score = p[n][2 * half + i];
          score = key ? score * args.scale : -3.402823466e38f;
          top = fmaxf(top, score);
        }
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float shrink = expf(most[half] - top);
      most[half] = top;
      float sum = 0.0f;
#pragma unroll
      for (u32 n = 0; n < 4; ++n)
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
          float& score = p[n][2 * half + i];
          score = expf(score - top);
          sum += score;
        }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      total[half] = fmaf(total[half], shrink, sum);
#pragma unroll
      for (u32 n = 0; n < ATTENTION_CHANNELS / 8; ++n)
#pragma unroll
        for (u32 i = 0; i < 2; ++i) out[n][2 * half + i] *= shrink;
    }
    copy_wait<0>();
    __syncthreads();
#pragma unroll
    for (u32 j = 0; j < ATTENTION_KEYS / Mix<T>::KEYS; ++j) {
      u32 a[4];
      Mix<T>::scores(a, p, j);
#pragma unroll
      for (u32 n = 0; n < ATTENTION_CHANNELS / 8; ++n) {
        // Narrow heads do not pay for the whole tile.
        if (column0 + n * 8u >= args.pitch) continue;
        u32 b[2];
        Mix<T>::values(b, v, j, t, n * 8u + g);
        Product<T>::add(out[n], a, b);
      }
    }
  }

  // Through the warp's own part of the queries' memory, so that whole 16 bytes are written.
  __syncthreads();
  T* stage = reinterpret_cast<T*>(q + warp * 16u * CONV_A_PITCH);
  constexpr u32 STAGE_PITCH = CONV_A_PITCH * PER;
  const u32 row_of_y = args.heads * args.pitch;
  T* y = reinterpret_cast<T*>(args.y) + (u64)sample * args.queries * row_of_y + head * 8u;
#pragma unroll
  for (u32 n = 0; n < ATTENTION_CHANNELS / 8; n += DEPTH / 8) {
#pragma unroll
    for (u32 j = 0; j < DEPTH / 8; ++j)
#pragma unroll
      for (u32 i = 0; i < 4; ++i) {
        const u32 at = 8 * j + 2 * t + (i & 1u);
        const float value = column0 + 8 * n + at < args.dim ? out[n + j][i] / total[i >> 1] : 0.0f;
        stage[(g + 8 * (i >> 1)) * STAGE_PITCH + at] = from_float<T>(value);
      }
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const u32 row = (lane >> 2) + 8u * i, at = (lane & 3u) * V;
      const u32 query = first + warp * 16u + row, channel = column0 + 8 * n + at;
      if (query < args.queries && channel < args.pitch)
        store16(y + (u64)query * row_of_y + channel / 8u * 8u * args.heads + channel % 8u, load16(stage + row * STAGE_PITCH + at));
    }
    __syncwarp();
  }
}

KERNEL(attention_f32, AttentionArgs, ATTENTION_THREADS, 4) { attention_body<float>(args); }
KERNEL(attention_f16, AttentionArgs, ATTENTION_THREADS) { attention_body<f16>(args); }
KERNEL(attention_bf16, AttentionArgs, ATTENTION_THREADS) { attention_body<bf16>(args); }

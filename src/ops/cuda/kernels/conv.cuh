// Convolution and linear layers as an implicit matrix product on tensor cores, at any prefix of the weights.
//
// y = ((x * w) + bias + sample_bias + residual) * scale, optionally through SiLU or GELU. A row of the product is an output pixel, a column an
// output channel; the inner dimension runs over taps, parts of the input and their channels. Nothing of the input is
// laid out again (no im2col in memory), and a narrower subnet only shortens the loops: fewer inputs are fewer rows of each
// tap's weights, fewer outputs fewer columns.
//
// Weights are [tap, row, column] in words of 4 bytes: a word is one f32, or two 16-bit values of neighbouring inputs. So
// one loop serves the three types, as the fragments of mma.m16n8k16 (16 bits) and mma.m16n8k8 (tf32) are the same words.
// f32 is split into two tf32 halves and multiplied three times, which keeps f32's accuracy.
#pragma once
#include "device.cuh"

struct ConvPart {
  u64 address;  // T [samples, height, width, stride]
  u32 stride;   // elements from pixel to pixel
  u32 width;    // channels, zeros up to a multiple of 8 included
  u32 row;      // where its rows begin in each tap's weights
  u32 padding;
};

enum ConvAct : u32 { CONV_IDENTITY = 0, CONV_SILU = 1, CONV_GELU = 2 };

struct ConvArgs {
  ConvPart parts[2];  // the second has width 0 where there is one
  u64 samples;        // u64 [samples]: addresses of the first part's samples; 0: they follow each other
  u64 weight;         // u32 [taps, tap_rows / elements of a word, weight_pitch]
  u64 bias;           // f32 [weight_pitch], or 0
  u64 sample_bias;    // T [samples, sample_bias_pitch], on a boundary of 16 bytes; or 0
  u64 residual;       // T like y, or 0
  u64 y;              // T [samples, out_height, out_width, groups * group_pitch]
  u32 height, width, out_height, out_width;
  u32 kernel[2], pad[2];  // rows and columns of the kernel; zeros above and left of the map
  u32 tap_rows;          // rows of a tap, a multiple of 8
  u32 weight_pitch;      // columns, a multiple of 8
  u32 groups;            // of outputs: 3 a head for queries, keys and values, 2 for a gate and what it gates, else 1
  u32 group_columns;     // from group to group in the weights, a multiple of 8
  u32 outputs;           // kept outputs of a group
  u32 group_pitch;       // from group to group in y, a multiple of 8
  u32 sample_bias_pitch;  // a multiple of 8
  u32 act;  // a ConvAct
  float scale;
  u32 stride;  // from output to output in the input
};

template <typename T> struct Product;
template <> struct Product<f16> {
  static __device__ __forceinline__ void add(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(d, a, b); }
};
template <> struct Product<bf16> {
  static __device__ __forceinline__ void add(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_bf16(d, a, b); }
};
template <> struct Product<float> {
  static __device__ __forceinline__ void split(u32 word, u32& high, u32& low) {
    const float value = float_of_bits(word);
    high = to_tf32(value);
    low = to_tf32(value - float_of_bits(high));
  }
  static __device__ __forceinline__ void add(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    u32 a_high[4], a_low[4], b_high[2], b_low[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) split(a[i], a_high[i], a_low[i]);
#pragma unroll
    for (int i = 0; i < 2; ++i) split(b[i], b_high[i], b_low[i]);
    // The small products first: they would drown in the large ones.
    mma_tf32(d, a_low, b_high);
    mma_tf32(d, a_high, b_low);
    mma_tf32(d, a_high, b_high);
  }
};

constexpr u32 CONV_THREADS = 128;
constexpr u32 CONV_ROWS = 64;     // pixels of a block's tile
constexpr u32 CONV_COLUMNS = 64;  // outputs of a block's tile
constexpr u32 CONV_WORDS = 16;    // words of the inner dimension in one stage
constexpr u32 CONV_STAGES = 3;
// Padded so that the lanes of a fragment lie in different banks.
constexpr u32 CONV_A_PITCH = CONV_WORDS + 4;
constexpr u32 CONV_B_PITCH = CONV_COLUMNS + 8;
constexpr u32 CONV_STAGE = CONV_ROWS * CONV_A_PITCH + CONV_WORDS * CONV_B_PITCH;
constexpr u32 CONV_C_PITCH = CONV_COLUMNS + 4;
static_assert(CONV_ROWS * CONV_C_PITCH <= CONV_STAGES * CONV_STAGE, "the result is staged where the operands were");

// Grid: tiles of pixels of a sample, tiles of columns of all groups, samples.
template <typename T> __device__ __forceinline__ void conv_body(const ConvArgs& args) {
  constexpr u32 V = Pack<T>::V;               // elements of 16 bytes
  constexpr u32 PER = 4 / sizeof(T);          // elements of a word
  constexpr u32 DEPTH = CONV_WORDS * PER;     // elements of a stage
  SHARED_ARRAY(u32, shared, CONV_STAGES * CONV_STAGE);

  const u32 thread = threadIdx.x, lane = thread & 31u, warp = thread >> 5;
  const u32 sample = blockIdx.z;
  const u32 pixels = args.out_height * args.out_width;
  const u32 first = blockIdx.x * CONV_ROWS;
  const u32 tiles = (args.group_pitch + CONV_COLUMNS - 1) / CONV_COLUMNS;
  const u32 group = blockIdx.y / tiles, column = blockIdx.y % tiles * CONV_COLUMNS;
  const u32 weight_column = group * args.group_columns + column;

  // What this thread copies: 16 bytes of two rows of the input, and of two rows of the weights.
  const u32 piece = thread & 3u;
  int oy[2], ox[2];  // where the first tap lies, but for the padding
  bool inside[2];
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    const u32 pixel = first + (thread >> 2) + 32u * i;
    inside[i] = pixel < pixels;
    oy[i] = (int)(pixel / args.out_width * args.stride);
    ox[i] = (int)(pixel % args.out_width * args.stride);
  }
  const T* sources[2];
#pragma unroll
  for (u32 part = 0; part < 2; ++part) {
    const u64 step = (u64)args.height * args.width * args.parts[part].stride;
    sources[part] = reinterpret_cast<const T*>(args.parts[part].address) + sample * step;
  }
  if (args.samples != 0) sources[0] = reinterpret_cast<const T*>(reinterpret_cast<const u64*>(args.samples)[sample]);
  const u32* weight = reinterpret_cast<const u32*>(args.weight);

  const u32 chunks0 = (args.parts[0].width + DEPTH - 1) / DEPTH;
  const u32 per_tap = chunks0 + (args.parts[1].width + DEPTH - 1) / DEPTH;
  const u32 steps = args.kernel[0] * args.kernel[1] * per_tap;
  u32 next_tap = 0, next_chunk = 0;  // of the stage that is loaded next

  auto load = [&](u32 stage) {
    u32* a = shared + stage * CONV_STAGE;
    u32* b = a + CONV_ROWS * CONV_A_PITCH;
    const u32 part = next_chunk < chunks0 ? 0u : 1u;
    const ConvPart& input = args.parts[part];
    const u32 channel = (next_chunk - (part ? chunks0 : 0u)) * DEPTH;
    const int dy = (int)(next_tap / args.kernel[1]) - (int)args.pad[0], dx = (int)(next_tap % args.kernel[1]) - (int)args.pad[1];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const int y = oy[i] + dy, x = ox[i] + dx;
      const u32 at = channel + piece * V;
      const bool valid = inside[i] && y >= 0 && y < (int)args.height && x >= 0 && x < (int)args.width && at < input.width;
      const T* from = part ? sources[1] : sources[0];
      if (valid) from += ((u64)y * args.width + x) * input.stride + at;
      copy16_async(a + ((thread >> 2) + 32u * i) * CONV_A_PITCH + piece * 4u, from, valid);
    }
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const u32 word = (thread >> 4) + 8u * i, at = (thread & 15u) * 4u;
      const bool valid = channel + word * PER < input.width && weight_column + at < args.weight_pitch;
      const u32* from = weight;
      if (valid) {
        const u64 row = ((u64)next_tap * args.tap_rows + input.row + channel) / PER + word;
        from += row * args.weight_pitch + weight_column + at;
      }
      copy16_async(b + word * CONV_B_PITCH + at, from, valid);
    }
    if (++next_chunk == per_tap) { next_chunk = 0; ++next_tap; }
  };

  float sums[2][4][4];
#pragma unroll
  for (u32 m = 0; m < 2; ++m)
#pragma unroll
    for (u32 n = 0; n < 4; ++n)
#pragma unroll
      for (u32 i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;

  // A warp has 32 x 32 of the tile; within a fragment a lane has row g and word t.
  const u32 row0 = (warp & 1u) * 32u, column0 = (warp >> 1) * 32u, g = lane >> 2, t = lane & 3u;
  for (u32 stage = 0; stage < CONV_STAGES - 1; ++stage) {
    if (stage < steps) load(stage);
    copy_commit();
  }
  for (u32 step = 0; step < steps; ++step) {
    copy_wait<CONV_STAGES - 2>();
    // Everybody's part of this stage has come, and nobody reads the one that is loaded next.
    __syncthreads();
    if (step + CONV_STAGES - 1 < steps) load((step + CONV_STAGES - 1) % CONV_STAGES);
    copy_commit();
    const u32* a = shared + step % CONV_STAGES * CONV_STAGE;
    const u32* b = a + CONV_ROWS * CONV_A_PITCH;
#pragma unroll
    for (u32 k = 0; k < CONV_WORDS; k += 8) {
      u32 rows[2][4], columns[4][2];
#pragma unroll
      for (u32 m = 0; m < 2; ++m)
#pragma unroll
        for (u32 i = 0; i < 4; ++i)
          rows[m][i] = a[(row0 + m * 16u + g + (i & 1u) * 8u) * CONV_A_PITCH + k + t + (i >> 1) * 4u];
#pragma unroll
      for (u32 n = 0; n < 4; ++n)
#pragma unroll
        for (u32 i = 0; i < 2; ++i) columns[n][i] = b[(k + t + i * 4u) * CONV_B_PITCH + column0 + n * 8u + g];
#pragma unroll
      for (u32 m = 0; m < 2; ++m)
#pragma unroll
        for (u32 n = 0; n < 4; ++n) Product<T>::add(sums[m][n], rows[m], columns[n]);
    }
  }
  copy_wait<0>();
  __syncthreads();

  // Through shared memory, so that whole 16 bytes are read and written below.
  float* c = reinterpret_cast<float*>(shared);
#pragma unroll
  for (u32 m = 0; m < 2; ++m)
#pragma unroll
    for (u32 n = 0; n < 4; ++n)
#pragma unroll
      for (u32 i = 0; i < 4; ++i)
        c[(row0 + m * 16u + g + (i >> 1) * 8u) * CONV_C_PITCH + column0 + n * 8u + t * 2u + (i & 1u)] = sums[m][n][i];
  __syncthreads();

  const float* bias = reinterpret_cast<const float*>(args.bias);
  const T* sample_bias = reinterpret_cast<const T*>(args.sample_bias);
  const T* residual = reinterpret_cast<const T*>(args.residual);
  T* y = reinterpret_cast<T*>(args.y);
  constexpr u32 VECTORS = CONV_COLUMNS / V;
  for (u32 i = thread; i < CONV_ROWS * VECTORS; i += CONV_THREADS) {
    const u32 row = i / VECTORS, at = i % VECTORS * V;
    if (first + row >= pixels || column + at >= args.group_pitch) continue;
    const u64 place =
        ((u64)sample * pixels + first + row) * (args.groups * args.group_pitch) + group * args.group_pitch + column + at;
    Pack<T> more, own, out;
    Pack<float> shared_bias[V / 4];
    if (residual) more = load16(residual + place);
    if (sample_bias) own = load16(sample_bias + (u64)sample * args.sample_bias_pitch + column + at);
    if (bias) {
#pragma unroll
      for (u32 e = 0; e < V; e += 4) shared_bias[e / 4] = load16(bias + weight_column + at + e);
    }
#pragma unroll
    for (u32 e = 0; e < V; ++e) {
      float value = c[row * CONV_C_PITCH + at + e];
      if (bias) value += shared_bias[e / 4].e[e % 4];
      if (sample_bias) value += to_float(own.e[e]);
      if (residual) value += to_float(more.e[e]);
      value *= args.scale;
      if (args.act == CONV_SILU) value = silu(value);
      if (args.act == CONV_GELU) value = gelu(value);
      // The weights of wider subnets have been multiplied too; channels up to the pitch must be zeros.
      out.e[e] = from_float<T>(column + at + e < args.outputs ? value : 0.0f);
    }
    store16(y + place, out);
  }
}

KERNEL(conv_f32, ConvArgs, CONV_THREADS) { conv_body<float>(args); }
KERNEL(conv_f16, ConvArgs, CONV_THREADS) { conv_body<f16>(args); }
KERNEL(conv_bf16, ConvArgs, CONV_THREADS) { conv_body<bf16>(args); }

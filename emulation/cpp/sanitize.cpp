// Runs every kernel on inputs of several sizes, for builds with sanitizers (scripts/cuda-light.sh). Each buffer is its own
// piece of the heap and as large as it has to be. A kernel's results must be numbers, and the same in every schedule of
// threads; that they are the right ones is tested elsewhere. usage: sanitize [BEGIN_OF_A_KERNEL'S_NAME]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

#include "kernels.cu"
#include "launch.h"
#include "probes.cu"

namespace {

u32 random_bits() {
    static u32 state = 2463534242;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}
float random_number() { return float(random_bits() >> 8) * 0x1p-23f - 1.0f; }

bool is_number(float value) { return std::isfinite(value); }
bool is_number(f16 value) { return std::isfinite(to_float(value)); }
[[maybe_unused]] bool is_number(bf16 value) { return std::isfinite(to_float(value)); }
bool is_number(u32) { return true; }
bool is_number(u8) { return true; }
bool is_number(const SamplerRow&) { return true; }

// What the names of the kernels to run begin with.
std::string wanted;

// A launch's memory and what it must leave.
class Case {
  public:
    explicit Case(const char* kernel, const char* type = "") : kernel(std::string(kernel) + type) {}
    ~Case() {
        for (Region& region : regions) free(region.data);
    }
    Case(const Case&) = delete;

    // Memory with these values; its address.
    template <typename T> u64 hold(const std::vector<T>& values) {
        T* data = allocate<T>(values.size(), false);
        std::copy(values.begin(), values.end(), data);
        return u64(data);
    }
    // Memory with numbers between -1 and 1.
    template <typename T> u64 input(size_t count) {
        std::vector<T> values(count);
        for (T& value : values) value = from_float<T>(random_number());
        return hold(values);
    }
    // Memory that the kernel fills, NaN at first.
    template <typename T> u64 output(size_t count) {
        T* data = allocate<T>(count, true);
        memset(static_cast<void*>(data), 0xff, count * sizeof(T));
        return u64(data);
    }
    // Memory that the kernel leaves other than it was.
    template <typename T> u64 both(const std::vector<T>& values) {
        const u64 address = hold(values);
        regions.back().written = true;
        return address;
    }

    template <typename Args> void run(uint3 grid, const Args& args) {
        if (kernel.compare(0, wanted.size(), wanted)) return;
#ifdef EMULATION_THREADS
        const std::vector<emulation::Order> orders{{}};
#else
        using emulation::Order;
        const std::vector<Order> orders{{Order::Forward, false}, {Order::Reverse, false}, {Order::Shuffled, false, 3},
                                        {Order::Forward, true},  {Order::Reverse, true},  {Order::Shuffled, true, 4}};
#endif
        for (Region& region : regions) region.before.assign(region.data, region.data + region.bytes);
        for (size_t i = 0; i < orders.size(); ++i) {
            for (Region& region : regions) memcpy(region.data, region.before.data(), region.bytes);
            const std::string error = emulation::launch(kernel.c_str(), grid, &args, sizeof(args), orders[i]);
            if (!error.empty()) fail(error);
            for (Region& region : regions) {
                if (!region.written) continue;
                if (!region.numbers(region)) fail("kernel " + kernel + " leaves something that is not a number");
                if (i == 0) region.after.assign(region.data, region.data + region.bytes);
                else if (memcmp(region.after.data(), region.data, region.bytes))
                    fail("kernel " + kernel + " depends on the order of threads");
            }
        }
    }

  private:
    struct Region {
        char* data;
        size_t bytes;
        bool written;
        bool (*numbers)(const Region&);
        std::vector<char> before, after;
    };
    std::string kernel;
    std::deque<Region> regions;

    template <typename T> T* allocate(size_t count, bool written) {
        void* data = nullptr;
        if (posix_memalign(&data, 16, count * sizeof(T))) abort();
        const auto numbers = [](const Region& region) {
            const T* values = reinterpret_cast<const T*>(region.data);
            return std::all_of(values, values + region.bytes / sizeof(T), [](T value) { return is_number(value); });
        };
        regions.push_back({static_cast<char*>(data), count * sizeof(T), written, numbers, {}, {}});
        return static_cast<T*>(data);
    }
    [[noreturn]] static void fail(const std::string& what) {
        fprintf(stderr, "sanitize: %s\n", what.c_str());
        exit(1);
    }
};

u32 pitch(u32 channels) { return (channels + 7) / 8 * 8; }
u32 parts(u32 whole, u32 part) { return (whole + part - 1) / part; }

template <typename T>
void conv(const char* type, u32 samples, u32 height, u32 width, u32 first, u32 second, u32 kernel,
          u32 outputs, bool all, u32 stride = 1) {
    Case test("conv", type);
    const u32 pixels = height * width, out = pitch(outputs), columns = pitch(outputs + 5);
    const u32 out_height = parts(height, stride), out_width = parts(width, stride), out_pixels = out_height * out_width;
    const u32 rows = pitch(first) + pitch(second);
    ConvArgs args{};
    args.parts[0] = {test.input<T>(samples * pixels * pitch(first)), pitch(first), pitch(first), 0, 0};
    if (second) {
        const u32 width = pitch(second);
        args.parts[1] = {test.input<T>(samples * pixels * width), width, width, pitch(first), 0};
    }
    args.weight = test.input<T>(kernel * kernel * rows * columns);
    if (all) {
        args.bias = test.input<float>(columns);
        args.sample_bias = test.input<T>(samples * out);
        args.residual = test.input<T>(samples * out_pixels * out);
    }
    args.y = test.output<T>(samples * out_pixels * out);
    args.height = height;
    args.width = width;
    args.out_height = out_height;
    args.out_width = out_width;
    args.stride = stride;
    args.kernel[0] = args.kernel[1] = kernel;
    args.pad[0] = args.pad[1] = kernel / 2;
    args.tap_rows = rows;
    args.weight_pitch = args.group_columns = columns;
    args.groups = 1;
    args.outputs = outputs;
    args.group_pitch = args.sample_bias_pitch = out;
    args.act = stride > 1 ? CONV_GELU : all ? CONV_SILU : CONV_IDENTITY;
    args.scale = 0.5f;
    test.run({parts(out_pixels, CONV_ROWS), parts(out, CONV_COLUMNS), samples}, args);
}

// Queries, keys and values side by side, or where there are `others` those keys and values by themselves.
template <typename T> void attention(const char* type, u32 samples, u32 pixels, u32 heads, u32 dim, u32 others = 0) {
    Case test("attention", type);
    const u32 row = heads * pitch(dim);
    AttentionArgs args{};
    args.q_stride = (others ? 1 : 3) * row;
    args.q = test.input<T>(samples * pixels * args.q_stride);
    args.kv_stride = others ? 2 * row : args.q_stride;
    args.k = others ? test.input<T>(samples * others * args.kv_stride) : args.q + row * sizeof(T);
    args.v = args.k + row * sizeof(T);
    args.y = test.output<T>(samples * pixels * row);
    args.queries = pixels;
    args.keys = others ? others : pixels;
    args.heads = heads;
    args.dim = dim;
    args.pitch = pitch(dim);
    args.scale = 0.2f;
    test.run({parts(pixels, ATTENTION_QUERIES), heads * parts(pitch(dim), ATTENTION_CHANNELS), samples}, args);
}

template <typename T> void gate(const char* type, u32 pixels, u32 channels) {
    Case test("gate", type);
    GateArgs args{};
    args.pitch = pitch(channels);
    args.x = test.input<T>(pixels * 2 * args.pitch);
    args.y = test.output<T>(pixels * args.pitch);
    args.vectors = pixels * args.pitch / Pack<T>::V;
    test.run({parts(args.vectors, GATE_THREADS), 1, 1}, args);
}

template <typename T>
void group_norm(const char* type, u32 samples, u32 pixels, u32 first, u32 second, u32 groups,
             bool film = false) {
    Case test("group_norm", type);
    const u32 channels = first + second, width = pitch(first) + pitch(second);
    GroupNormArgs args{};
    args.x[0] = test.input<T>(samples * pixels * pitch(first));
    if (second) args.x[1] = test.input<T>(samples * pixels * pitch(second));
    args.scale = test.input<float>(channels);
    args.shift = test.input<float>(channels);
    if (film) {
        args.film_pitch = channels + 3;
        args.film_scale = test.input<T>((samples - 1) * args.film_pitch + channels);
        args.film_shift = test.input<T>((samples - 1) * args.film_pitch + channels);
    }
    std::vector<u32> members, starts{0};
    for (u32 group = 0; group < groups; ++group) {
        for (u32 channel = group; channel < channels; channel += groups) members.push_back(channel);
        starts.push_back(members.size());
    }
    args.members = test.hold(members);
    args.starts = test.hold(starts);
    args.chunk = 16;
    args.chunks = parts(pixels, args.chunk);
    args.sums = test.output<float>(samples * args.chunks * 2 * width);
    args.counters = test.both(std::vector<u32>(samples));
    args.affine = test.output<float>(samples * 2 * width);
    args.channels[0] = first;
    args.channels[1] = second;
    args.widths[0] = pitch(first);
    args.widths[1] = pitch(second);
    args.pixels = pixels;
    args.groups = groups;
    args.eps = 1e-5f;
    test.run({args.chunks, 1, samples}, args);
}

template <typename T>
void elementwise(const char* type, u32 samples, u32 side, u32 first, u32 second, ElementwiseFilter filter,
         bool all) {
    Case test("elementwise", type);
    const u32 width = pitch(first) + pitch(second);
    const u32 out = filter == ELEMENTWISE_DOWN ? side / 2 : filter == ELEMENTWISE_UP ? 2 * side : side;
    ElementwiseArgs args{};
    args.x[0] = test.input<T>(samples * side * side * pitch(first));
    if (second) args.x[1] = test.input<T>(samples * side * side * pitch(second));
    if (all) {
        args.affine = test.input<float>(samples * 2 * width);
        args.residual = test.input<T>(samples * out * out * width);
    }
    args.y = test.output<T>(samples * out * out * width);
    args.widths[0] = pitch(first);
    args.widths[1] = pitch(second);
    args.height = args.width = side;
    args.out_height = args.out_width = out;
    args.filter = filter;
    args.taps = 4;
    args.pad = 1;
    args.silu = all;
    for (u32 tap = 0; tap < 4; ++tap) args.weights[tap] = 0.25f;
    args.scale = 0.5f;
    test.run({parts(out * out * (width / Pack<T>::V), ELEMENTWISE_THREADS), 1, samples}, args);
}

template <typename T> void embedding(const char* type, u32 half, u32 width) {
    Case test("embedding", type);
    EmbeddingArgs args{};
    args.noise = test.input<float>(3);
    args.classes = test.hold(std::vector<u32>{1, 0, 4});
    if (half) args.frequencies = test.input<float>(half);
    args.labels = test.input<float>(5 * width);
    args.half = half;
    args.width = width;
    args.pitch = pitch(width);
    args.cosines_first = half > 50;
    args.y = test.output<T>(3 * args.pitch);
    test.run({3, 1, 1}, args);
}

template <typename T> void layer_norm(const char* type, u32 pixels, u32 channels) {
    Case test("layer_norm", type);
    LayerNormArgs args{};
    args.x = test.input<T>(pixels * pitch(channels));
    args.scale = test.input<float>(pitch(channels));
    args.shift = test.input<float>(pitch(channels));
    args.y = test.output<T>(pixels * pitch(channels));
    args.pixels = pixels;
    args.channels = channels;
    args.pitch = pitch(channels);
    args.eps = 1e-5f;
    test.run({parts(pixels, LAYER_NORM_PIXELS), 1, 1}, args);
}

template <typename T> void tokens(const char* type, u32 samples, u32 fronts, u32 pixels, u32 channels) {
    Case test("tokens", type);
    const u32 width = pitch(channels), tokens = fronts + pixels;
    TokensArgs args{};
    for (u32 i = 0; i < fronts; ++i) args.front[i] = test.input<T>(samples * width);
    args.x = test.input<T>(samples * pixels * width);
    args.positions = test.input<float>(tokens * width);
    args.y = test.output<T>(samples * tokens * width);
    args.fronts = fronts;
    args.pixels = pixels;
    args.pitch = width;
    test.run({parts(tokens * width / Pack<T>::V, TOKENS_THREADS), 1, samples}, args);
}

template <typename T> void unpatch(const char* type, u32 samples, u32 fronts, u32 side, u32 patch, u32 channels) {
    Case test("unpatch", type);
    const u32 pixels = side * patch * side * patch;
    UnpatchArgs args{};
    args.x_pitch = pitch(patch * patch * channels);
    args.y_pitch = pitch(channels);
    args.x = test.input<T>(samples * (fronts + side * side) * args.x_pitch);
    args.y = test.output<T>(samples * pixels * args.y_pitch);
    args.fronts = fronts;
    args.rows = args.columns = side;
    args.patch = patch;
    args.channels = channels;
    test.run({parts(pixels * args.y_pitch / Pack<T>::V, UNPATCH_THREADS), 1, samples}, args);
}

template <typename T> void sampler(const char* type, u32 pixels, u32 channels) {
    Case test("sampler", type);
    const u32 state = (pixels + 3) / 4 * 4 * channels;
    std::vector<SamplerRow> rows(3);
    for (u32 i = 0; i < 3; i += 2) { // the second has no image
        std::vector<float> values(state);
        for (float& value : values) value = random_number();
        rows[i].x = test.both(values);
        for (u32 m = 0; m < 3; ++m) rows[i].memory[m] = test.both(values);
        rows[i].newest = i ? test.output<float>(state) : rows[i].memory[2];
        rows[i].estimate = i ? test.output<float>(state) : 0;
        rows[i].input = test.output<T>(pixels * 8);
        rows[i].seed = 5;
        rows[i].image = i;
        rows[i].conditional = i;
        rows[i].unconditional = 1;
        rows[i].guidance = rows[i].c_skip = rows[i].c_out = rows[i].a_x = rows[i].a_d = 0.5f;
        rows[i].a_m[0] = rows[i].a_m[1] = rows[i].a_m[2] = rows[i].b_m = 0.5f;
        rows[i].noise = rows[i].b_x = rows[i].b_d = rows[i].c_in = 0.25f;
    }
    SamplerArgs args{};
    args.rows = test.hold(rows);
    args.output = test.input<T>(3 * pixels * 8);
    args.faults = test.both(std::vector<u32>(3));
    args.pixels = pixels;
    args.channels = channels;
    test.run({parts(pixels, SAMPLER_THREADS * SAMPLER_PIXELS), 3, 1}, args);
}

template <typename T> void of_type(const char* type) {
    conv<T>(type, 1, 8, 8, 64, 0, 3, 16, false);
    conv<T>(type, 2, 5, 7, 13, 24, 3, 70, true);
    conv<T>(type, 3, 1, 1, 40, 0, 1, 9, true);
    conv<T>(type, 2, 8, 6, 3, 0, 2, 20, true, 2);
    attention<T>(type, 1, 16, 1, 8);
    attention<T>(type, 2, 70, 1, 20);
    attention<T>(type, 1, 33, 1, 136);
    attention<T>(type, 2, 33, 3, 13);
    attention<T>(type, 2, 70, 2, 12, 33);
    gate<T>(type, 3, 13);
    gate<T>(type, 150, 40);
    group_norm<T>(type, 2, 16, 8, 0, 2);
    group_norm<T>(type, 2, 50, 24, 13, 5);
    group_norm<T>(type, 2, 20, 12, 0, 3, true);
    group_norm<T>(type, 1, 3, 2100, 0, 7);
    elementwise<T>(type, 2, 4, 8, 0, ELEMENTWISE_KEEP, true);
    elementwise<T>(type, 1, 6, 16, 13, ELEMENTWISE_DOWN, true);
    elementwise<T>(type, 2, 5, 9, 0, ELEMENTWISE_UP, false);
    embedding<T>(type, 6, 12);
    embedding<T>(type, 70, 140);
    embedding<T>(type, 0, 13);
    layer_norm<T>(type, 5, 20);
    layer_norm<T>(type, 8, 600);
    tokens<T>(type, 3, 0, 9, 20);
    tokens<T>(type, 2, 2, 30, 40);
    unpatch<T>(type, 2, 1, 3, 2, 3);
    unpatch<T>(type, 1, 2, 5, 4, 1);
    unpatch<T>(type, 1, 0, 3, 1, 13);
    for (u32 channels : {1, 3, 4}) {
        sampler<T>(type, 49, channels);
        sampler<T>(type, 516, channels);
    }
}

void of_no_type() {
    for (u32 count : {1, 511, 2050}) {
        Case test("normals");
        NormalsArgs args{};
        args.out = reinterpret_cast<float*>(test.output<float>(count));
        args.seed = 7;
        args.count = count;
        test.run({parts(count, 4 * 128), 1, 1}, args);
    }
    for (u32 elements : {1, 100, 2050}) {
        Case test("pixels");
        const u32 whole = (elements + 15) / 16 * 16;
        PixelsArgs args{test.input<float>(whole), test.output<u8>(whole), elements, 0};
        test.run({parts(elements, 16 * PIXELS_THREADS), 1, 1}, args);
    }
    {
        Case test("probe_sum");
        std::vector<u32> values(1000, 3);
        const void* from = reinterpret_cast<const void*>(test.hold(values));
        ProbeArgs args{from, nullptr, reinterpret_cast<void*>(test.both(std::vector<u32>(3))), 1000, 0};
        test.run({5, 1, 1}, args);
    }
    {
        Case test("probe_copy");
        const void* from = reinterpret_cast<const void*>(test.input<float>(1000));
        ProbeArgs args{from, nullptr, reinterpret_cast<void*>(test.output<float>(1024)), 1000, 0};
        test.run({4, 1, 1}, args);
    }
}

} // namespace

int main(int count, char** words) {
    if (count > 1) wanted = words[1];
    of_type<float>("_f32");
    of_type<f16>("_f16");
#ifndef EMULATION_THREADS // where its races are f16's
    of_type<bf16>("_bf16");
#endif
    of_no_type();
    puts("sanitize: the kernels pass");
}

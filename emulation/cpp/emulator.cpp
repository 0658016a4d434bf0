// Runs the kernels of a translation unit that includes emulator.h. See there for what is checked.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "launch.h"
#ifdef EMULATION_THREADS
#include <barrier>
#include <mutex>
#include <thread>
#include <unistd.h>
#else
#include <sys/mman.h>
#endif

namespace emulation {

const Kernel* Kernel::first = nullptr;
__thread Place* place = nullptr;

namespace {

constexpr u32 WARP = 32;
constexpr size_t SHARED_BYTES = 48 << 10; // static shared memory of a block on any GPU
constexpr int POISON = 0xff;              // NaN in every format of the kernels

// ---------------------------------------------------------------- contexts

#ifndef EMULATION_THREADS
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
// ucontext asks the system at every switch, which takes a hundred times as long.
struct Context { void* stack = nullptr; };
extern "C" void accordion_emulation_switch(void** from, void* to);
asm(R"(
.text
.type accordion_emulation_switch, @function
accordion_emulation_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size accordion_emulation_switch, . - accordion_emulation_switch
)");
void switch_context(Context& from, Context& to) { accordion_emulation_switch(&from.stack, to.stack); }
void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + bytes);
    *--top = nullptr; // the entry's return address, so that its stack is aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    context.stack = top;
}
#else
#include <ucontext.h>
typedef ucontext_t Context;
void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

// The stacks of a block's fibers, each behind a page that may not be touched.
class Stacks {
  public:
    static constexpr size_t BYTES = 128 << 10, GUARD = 4096;
    ~Stacks() { release(); }
    char* at(u32 index) { return memory + index * (BYTES + GUARD) + GUARD; }
    void reserve(u32 wanted) {
        if (wanted <= count) return;
        release();
        const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* mapped = mmap(nullptr, wanted * (BYTES + GUARD), PROT_NONE, kind, -1, 0);
        if (mapped == MAP_FAILED) {
            perror("emulation: stacks");
            abort();
        }
        memory = static_cast<char*>(mapped);
        count = wanted;
        for (u32 i = 0; i < count; ++i) mprotect(at(i), BYTES, PROT_READ | PROT_WRITE);
    }

  private:
    char* memory = nullptr;
    u32 count = 0;
    void release() {
        if (memory) munmap(memory, count * (BYTES + GUARD));
        memory = nullptr;
        count = 0;
    }
};
#endif

// ---------------------------------------------------------------- state

enum class State { Ready, AtBarrier, InWarp, Done };

struct Copy {
    void* shared;
    const void* global;
    bool valid;
    u32 group;
};

struct Block;

struct Thread : Place {
    Block* owner;
    u32 index;
    State state;
    int line;           // of the barrier, while AtBarrier
    Exchange* exchange; // while InWarp
    std::vector<Copy> copies;
    u32 groups; // committed
#ifndef EMULATION_THREADS
    Context context;
#endif
};

struct Array {
    const void* key;
    std::unique_ptr<char, void (*)(void*)> data;
    size_t bytes;
};

struct Launch;

#ifdef EMULATION_THREADS
struct Perform {
    Block* block;
    u32 warp;
    void operator()() noexcept;
};
#endif

struct Block {
    const Launch* launch;
    std::vector<Thread> threads;
    std::vector<Array> arrays;
    std::string error;
#ifdef EMULATION_THREADS
    std::mutex arrays_lock;
    // One for each warp: a common one would order warps that a GPU does not order, and hide their races.
    std::vector<std::unique_ptr<std::barrier<Perform>>> warps;
    std::unique_ptr<std::barrier<>> all;
#else
    Context scheduler;
#endif
    void prepare(const Launch& launch, uint3 index);
    bool run();
    u32 width(u32 warp) const { return std::min<u32>(WARP, threads.size() - warp * WARP); }
};

struct Launch {
    const Kernel* kernel;
    const void* arguments;
    uint3 grid;
    Order order;
};

Thread& self() { return *static_cast<Thread*>(place); }

std::string message(const Block& block, const std::string& what) {
    const uint3 at = block.threads[0].block;
    return "kernel " + std::string(block.launch->kernel->name) + ", block (" + std::to_string(at.x) + ", " +
           std::to_string(at.y) + ", " + std::to_string(at.z) + "): " + what;
}

std::string name(const Thread& thread) { return "thread " + std::to_string(thread.index); }
std::string line(int line) { return line ? " in line " + std::to_string(line) : ""; }

// ---------------------------------------------------------------- operations of a warp

float element(Collective what, u32 bits) {
    return what == Collective::MmaF16 ? float_of_f16(bits) : float_of_bits(bits << 16);
}

// Fragments as in device.cuh. Products are exact in f32; they are added one by one, in the order of k.
void mma(Exchange* const* lanes) {
    typedef float Row __attribute__((vector_size(32)));
    const Collective what = lanes[0]->what;
    const u32 depth = what == Collective::MmaTf32 ? 8 : 16;
    float a[16][16];
    Row b[16], d[16];
    for (u32 lane = 0; lane < WARP; ++lane) {
        const u32 g = lane / 4, t = lane % 4;
        const Exchange& from = *lanes[lane];
        for (u32 i = 0; i < 4; ++i) {
            const u32 row = g + 8 * (i & 1);
            if (what == Collective::MmaTf32) {
                a[row][t + 4 * (i / 2)] = float_of_bits(from.a[i] & 0xffffe000);
            } else {
                const u32 k = 2 * t + 8 * (i / 2);
                a[row][k] = element(what, from.a[i] & 0xffff);
                a[row][k + 1] = element(what, from.a[i] >> 16);
            }
            d[g + 8 * (i / 2)][2 * t + (i & 1)] = from.d[i];
        }
        for (u32 i = 0; i < 2; ++i) {
            if (what == Collective::MmaTf32) {
                b[t + 4 * i][g] = float_of_bits(from.b[i] & 0xffffe000);
            } else {
                b[2 * t + 8 * i][g] = element(what, from.b[i] & 0xffff);
                b[2 * t + 8 * i + 1][g] = element(what, from.b[i] >> 16);
            }
        }
    }
    for (u32 row = 0; row < 16; ++row)
        for (u32 k = 0; k < depth; ++k) d[row] += a[row][k] * b[k];
    for (u32 lane = 0; lane < WARP; ++lane)
        for (u32 i = 0; i < 4; ++i) lanes[lane]->d[i] = d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + (i & 1)];
}

// Does what the lanes of `mask` came for; `lanes` has the others too, or null. What is wrong, or nothing.
std::string perform(Exchange* const* lanes, u32 mask) {
    const Exchange& first = *lanes[__builtin_ctz(mask)];
    for (u32 lane = 0; lane < WARP; ++lane) {
        if (!(mask >> lane & 1)) continue;
        if (lanes[lane]->what != first.what || lanes[lane]->line != first.line)
            return "the lanes of a warp meet at different operations" + line(first.line) + " and" +
                   line(lanes[lane]->line);
    }
    if (first.what == Collective::Sync) return "";
    if (first.what != Collective::Shuffle) {
        if (mask != ~0u) return "an mma needs a whole warp";
        mma(lanes);
        return "";
    }
    u32 values[WARP];
    for (u32 lane = 0; lane < WARP; ++lane)
        if (mask >> lane & 1) values[lane] = lanes[lane]->value;
    for (u32 lane = 0; lane < WARP; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const u32 source = lanes[lane]->source % WARP;
        if (!(mask >> source & 1))
            return "a shuffle" + line(first.line) + " reads lane " + std::to_string(source) +
                   ", which is not of its mask";
        lanes[lane]->value = values[source];
    }
    return "";
}

} // namespace

// ---------------------------------------------------------------- threads

#ifdef EMULATION_THREADS
namespace {

[[noreturn]] void end(const std::string& what) {
    fprintf(stderr, "emulation: %s\n", what.c_str());
    _exit(3);
}

void Perform::operator()() noexcept {
    Exchange* lanes[WARP] = {};
    const u32 width = block->width(warp);
    for (u32 lane = 0; lane < width; ++lane) lanes[lane] = block->threads[warp * WARP + lane].exchange;
    const std::string wrong = perform(lanes, width == WARP ? ~0u : (1u << width) - 1);
    if (!wrong.empty()) end(message(*block, wrong));
}

bool Block::run() {
    all = std::make_unique<std::barrier<>>(threads.size());
    warps.clear();
    for (u32 warp = 0; warp * WARP < threads.size(); ++warp)
        warps.push_back(std::make_unique<std::barrier<Perform>>(width(warp), Perform{this, warp}));
    std::vector<std::thread> running;
    for (Thread& thread : threads) {
        running.emplace_back([this, &thread] {
            place = &thread;
            launch->kernel->run(launch->arguments);
            all->arrive_and_drop();
        });
    }
    for (std::thread& thread : running) thread.join();
    return true;
}

} // namespace

void fail(const char* what) { end(message(*self().owner, name(self()) + ": " + what)); }
void barrier(int) { self().owner->all->arrive_and_wait(); }
void collective(Exchange& exchange) {
    self().exchange = &exchange;
    self().owner->warps[self().index / WARP]->arrive_and_wait();
}
#else

// ---------------------------------------------------------------- fibers

namespace {

class Random {
  public:
    explicit Random(u32 seed) : state(seed * 2654435769u | 1) {}
    u32 below(u32 n) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return u32(u64(state) * n >> 32);
    }

  private:
    u32 state;
};

// The numbers below n in the order of a schedule.
class Sequence {
  public:
    Sequence(u32 n, Order order) : order(order), random(order.seed), items(n) {
        for (u32 i = 0; i < n; ++i) items[i] = order.sequence == Order::Reverse ? n - 1 - i : i;
    }
    const std::vector<u32>& next() {
        if (order.sequence == Order::Shuffled)
            for (u32 i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random.below(i)]);
        return items;
    }

  private:
    Order order;
    Random random;
    std::vector<u32> items;
};

void suspend(State state) {
    Thread& thread = self();
    thread.state = state;
    switch_context(thread.context, thread.owner->scheduler);
}

void enter() {
    const Launch& launch = *self().owner->launch;
    launch.kernel->run(launch.arguments);
    suspend(State::Done);
}

// Serves the lanes of a warp whose partners have all come. False after an error.
bool serve(Block& block, u32 warp) {
    Thread* const threads = &block.threads[warp * WARP];
    const u32 width = block.width(warp), all = width == WARP ? ~0u : (1u << width) - 1;
    Exchange* lanes[WARP] = {};
    u32 waiting = 0;
    for (u32 lane = 0; lane < width; ++lane) {
        if (threads[lane].state != State::InWarp) continue;
        lanes[lane] = threads[lane].exchange;
        waiting |= 1u << lane;
    }
    while (waiting) {
        const u32 lane = __builtin_ctz(waiting), mask = lanes[lane]->mask & all;
        if (!(mask >> lane & 1)) {
            block.error = name(threads[lane]) + " is not of the mask it names" + line(lanes[lane]->line);
            return false;
        }
        if ((mask & ~waiting) != 0) {
            waiting &= ~(1u << lane);
            continue;
        }
        for (u32 other = 0; other < width; ++other) {
            if ((mask >> other & 1) && (lanes[other]->mask & all) != mask) {
                block.error = name(threads[lane]) + " and " + name(threads[other]) + " name different masks" +
                              line(lanes[lane]->line);
                return false;
            }
        }
        block.error = perform(lanes, mask);
        if (!block.error.empty()) return false;
        for (u32 other = 0; other < width; ++other)
            if (mask >> other & 1) threads[other].state = State::Ready;
        waiting &= ~mask;
    }
    return true;
}

// Why nothing goes on.
std::string deadlock(const Block& block) {
    const Thread *at_barrier = nullptr, *in_warp = nullptr, *done = nullptr;
    for (const Thread& thread : block.threads) {
        const Thread*& kind = thread.state == State::AtBarrier ? at_barrier
                              : thread.state == State::InWarp  ? in_warp
                                                               : done;
        if (!kind) kind = &thread;
    }
    std::string text;
    const auto say = [&](const Thread* thread, const std::string& what) {
        if (thread) text += (text.empty() ? "" : ", ") + name(*thread) + what;
    };
    if (at_barrier) say(at_barrier, " waits at __syncthreads" + line(at_barrier->line));
    if (in_warp) say(in_warp, " waits for lanes of its mask" + line(in_warp->exchange->line));
    say(done, " has left the kernel");
    return text;
}

bool Block::run() {
    const Order order = launch->order;
    const u32 count = threads.size();
    Sequence warps((count + WARP - 1) / WARP, order), lanes(WARP, order);
    for (;;) {
        bool progress = false;
        for (u32 warp : warps.next()) {
            bool ran;
            do {
                ran = false;
                for (u32 lane : lanes.next()) {
                    const u32 index = warp * WARP + lane;
                    if (index >= count || threads[index].state != State::Ready) continue;
                    place = &threads[index];
                    switch_context(scheduler, threads[index].context);
                    ran = true;
                    if (!error.empty()) return false;
                }
                if (!serve(*this, warp)) return false;
                progress |= ran;
            } while (ran && order.greedy);
        }
        u32 done = 0, at_barrier = 0;
        for (const Thread& thread : threads) {
            done += thread.state == State::Done;
            at_barrier += thread.state == State::AtBarrier;
        }
        if (done == count) return true;
        if (at_barrier == count) {
            for (Thread& thread : threads) {
                if (thread.line != threads[0].line) {
                    error = "thread 0 waits at __syncthreads" + line(threads[0].line) + ", " + name(thread) +
                            line(thread.line);
                    return false;
                }
                thread.state = State::Ready;
            }
        } else if (!progress) {
            error = deadlock(*this);
            return false;
        }
    }
}

} // namespace

void fail(const char* what) {
    self().owner->error = name(self()) + ": " + what;
    suspend(State::Done);
    __builtin_unreachable();
}
void barrier(int line) {
    self().line = line;
    suspend(State::AtBarrier);
}
void collective(Exchange& exchange) {
    self().exchange = &exchange;
    suspend(State::InWarp);
}
#endif

// ---------------------------------------------------------------- shared memory and copies

namespace {

void Block::prepare(const Launch& launched, uint3 index) {
    launch = &launched;
    threads.resize(launched.kernel->threads);
    for (Array& array : arrays) memset(array.data.get(), POISON, array.bytes);
#ifndef EMULATION_THREADS
    static thread_local Stacks stacks;
    stacks.reserve(threads.size());
#endif
    for (u32 i = 0; i < threads.size(); ++i) {
        Thread& thread = threads[i];
        thread.thread = {i, 0, 0};
        thread.block = index;
        thread.threads = {u32(threads.size()), 1, 1};
        thread.grid = launched.grid;
        thread.owner = this;
        thread.index = i;
        thread.state = State::Ready;
        thread.exchange = nullptr;
        thread.copies.clear();
        thread.groups = 0;
#ifndef EMULATION_THREADS
        emulation::prepare(thread.context, stacks.at(i), Stacks::BYTES, enter);
#endif
    }
}

} // namespace

void* shared_array(const void* key, size_t bytes) {
    Block& block = *self().owner;
#ifdef EMULATION_THREADS
    std::lock_guard<std::mutex> lock(block.arrays_lock);
#endif
    size_t total = bytes;
    for (const Array& array : block.arrays) {
        if (array.key == key) return array.data.get();
        total += array.bytes;
    }
    if (total > SHARED_BYTES) fail("the shared arrays take more than 48 KiB");
    // Each its own piece of the heap, so that AddressSanitizer sees its ends.
    void* data = nullptr;
    if (posix_memalign(&data, 128, bytes)) abort();
    memset(data, POISON, bytes);
    block.arrays.push_back({key, {static_cast<char*>(data), free}, bytes});
    return data;
}

void copy_begin(void* shared, const void* global, bool valid) {
    if ((size_t(shared) | size_t(global)) % 16) fail("a copy of 16 bytes is not on a boundary of 16");
    memset(shared, POISON, 16);
    self().copies.push_back({shared, global, valid, self().groups});
}

void copy_commit() { ++self().groups; }

void copy_wait(u32 pending) {
    Thread& thread = self();
    size_t arrived = 0;
    while (arrived < thread.copies.size() && thread.copies[arrived].group + pending < thread.groups) {
        const Copy& copy = thread.copies[arrived++];
        if (copy.valid) memcpy(copy.shared, copy.global, 16);
        else memset(copy.shared, 0, 16);
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + arrived);
}

// ---------------------------------------------------------------- launches

std::string launch(const char* name, uint3 grid, const void* arguments, size_t bytes, Order order) {
    const Kernel* kernel = Kernel::first;
    while (kernel && strcmp(kernel->name, name)) kernel = kernel->next;
    if (!kernel) return "there is no kernel " + std::string(name);
    if (bytes != kernel->arguments)
        return "kernel " + std::string(name) + " takes " + std::to_string(kernel->arguments) +
               " bytes of arguments, not " + std::to_string(bytes);
    const u64 count = u64(grid.x) * grid.y * grid.z;
    if (!count || grid.y > 65535 || grid.z > 65535)
        return "kernel " + std::string(name) + ": a GPU refuses the grid (" + std::to_string(grid.x) + ", " +
               std::to_string(grid.y) + ", " + std::to_string(grid.z) + ")";
    // The kernel reads its own copy, on a boundary that suits any struct.
    alignas(16) char copy[4096];
    memcpy(copy, arguments, bytes);
    const Launch launch{kernel, copy, grid, order};
    const auto index = [&](u32 block) { return uint3{block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y}; };
#ifdef EMULATION_THREADS
    // Blocks run side by side, so that their races are seen too.
    const u32 together = std::max(2u, 512 / kernel->threads);
    for (u32 from = 0; from < count; from += together) {
        std::vector<Block> blocks(std::min<u64>(together, count - from));
        std::vector<std::thread> running;
        for (u32 i = 0; i < blocks.size(); ++i) {
            blocks[i].prepare(launch, index(from + i));
            running.emplace_back([&blocks, i] { blocks[i].run(); });
        }
        for (std::thread& thread : running) thread.join();
    }
#else
    Block block;
    Sequence blocks(count, order);
    for (u32 i : blocks.next()) {
        block.prepare(launch, index(i));
        if (!block.run()) return message(block, block.error);
    }
#endif
    return "";
}

} // namespace emulation

// All kernels for the host, and the functions that the Rust side calls.
#include "kernels.cu"
#include "launch.h"
#include "probes.cu"

extern "C" {

// Null after the last.
const char* accordion_emulation_kernel(u32 index, u32* threads, size_t* arguments) {
    const emulation::Kernel* kernel = emulation::Kernel::first;
    while (kernel && index--) kernel = kernel->next;
    if (!kernel) return nullptr;
    *threads = kernel->threads;
    *arguments = kernel->arguments;
    return kernel->name;
}

// Leaves a message of at most `room` bytes, and its length; 0 where all went well.
size_t accordion_emulation_launch(const char* kernel, const u32* grid, const void* arguments, size_t bytes, u32 sequence,
                                  bool greedy, u32 seed, char* message, size_t room) {
    const emulation::Order order{emulation::Order::Kind(sequence), greedy, seed};
    const std::string error = emulation::launch(kernel, {grid[0], grid[1], grid[2]}, arguments, bytes, order);
    return error.copy(message, room);
}
}

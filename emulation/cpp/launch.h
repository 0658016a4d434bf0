// What may be asked of the emulation from outside of a kernel.
#pragma once
#include <string>

#include "device.cuh"

namespace emulation {

// The schedule of a launch: the order of blocks, of the warps of a block and of the lanes of a warp. `greedy` lets a warp
// run as far as it can before the next has its turn; otherwise each goes up to its next operation.
struct Order {
    enum Kind { Forward, Reverse, Shuffled } sequence = Forward;
    bool greedy = false;
    u32 seed = 1;
};

// Runs a kernel. `arguments` are the bytes of its struct, whose pointers are addresses of this process. What went wrong,
// or nothing.
std::string launch(const char* kernel, uint3 grid, const void* arguments, size_t bytes, Order order);

} // namespace emulation

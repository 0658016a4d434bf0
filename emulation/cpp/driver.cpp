// A stand-in for the driver's library, libcuda.so.1, whose GPU is the emulation: so the binary that a GPU would run, runs.
//
// It has what src/ops/cuda/gpu.rs and cudarc call, under the driver API's names and with its numbers (cuda.h). It is stricter
// than a GPU: a stream does its work as late as the API allows, when it is waited for, so that host memory that is reused too
// early shows; addresses of copies are checked; a call that a capture forbids is refused; a fault is final.
//
// ACCORDION_EMULATED_BYTES is the memory of the GPU, ACCORDION_EMULATED_GPUS their number.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.cu"
#include "launch.h"

namespace {

enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
};

struct Work {
    std::function<bool()> run; // whether it went well
};

struct Stream {
    std::vector<Work> queue;
    bool capturing = false;
    std::vector<Work> captured;
};

struct Graph {
    std::vector<Work> work;
};

constexpr size_t GUARD = 4096;
constexpr unsigned char UNWRITTEN = 0xff;

struct Allocation {
    std::unique_ptr<unsigned char[]> memory;
    size_t bytes;
};

struct Device {
    std::mutex mutex;
    bool ready = false;
    std::map<uint64_t, Allocation> memory;
    size_t used = 0;
    int fault = SUCCESS;
};
// Never destroyed: a thread of the process may still give memory back while `exit` runs the destructors.
Device& device = *new Device;

thread_local void* current = nullptr;
int context; // its address is the handle of the only context

size_t number(const char* name, size_t otherwise) {
    const char* text = std::getenv(name);
    return text ? std::strtoull(text, nullptr, 10) : otherwise;
}
size_t total() { return number("ACCORDION_EMULATED_BYTES", size_t(4) << 30); }
int gpus() { return int(number("ACCORDION_EMULATED_GPUS", 1)); }

bool allocated(uint64_t address, size_t bytes) {
    const std::lock_guard<std::mutex> lock(device.mutex);
    auto after = device.memory.upper_bound(address);
    if (after == device.memory.begin()) return false;
    const auto& [start, allocation] = *--after;
    return address + bytes <= start + allocation.bytes;
}

// What stands in the way of any call that works on the GPU.
int obstacle() {
    if (!device.ready) return NOT_INITIALIZED;
    if (!current) return INVALID_CONTEXT;
    return device.fault;
}

int lost(const std::string& why) {
    std::fprintf(stderr, "emulated GPU: %s\n", why.c_str());
    device.fault = LAUNCH_FAILED;
    return device.fault;
}

int enqueue(void* handle, Work work) {
    auto* stream = static_cast<Stream*>(handle);
    if (!stream) return INVALID_HANDLE;
    (stream->capturing ? stream->captured : stream->queue).push_back(std::move(work));
    return SUCCESS;
}

} // namespace

extern "C" {

int cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    device.ready = true;
    return SUCCESS;
}

int cuGetErrorName(int error, const char** name) {
    static const std::map<int, const char*> names = {
        {SUCCESS, "CUDA_SUCCESS"},
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
        {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
        {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
        {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
        {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
        {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
        {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    };
    const auto found = names.find(error);
    if (found == names.end()) return INVALID_VALUE;
    *name = found->second;
    return SUCCESS;
}

int cuGetErrorString(int error, const char** text) { return cuGetErrorName(error, text); }

int cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}

int cuDeviceGetCount(int* count) {
    *count = gpus();
    return device.ready ? SUCCESS : NOT_INITIALIZED;
}

int cuDeviceGet(int* handle, int index) {
    if (index < 0 || index >= gpus()) return INVALID_DEVICE;
    *handle = index;
    return device.ready ? SUCCESS : NOT_INITIALIZED;
}

int cuDeviceGetName(char* name, int room, int) {
    std::snprintf(name, size_t(room), "emulated GPU");
    return SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
    constexpr int CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76;
    *value = attribute == CAPABILITY_MAJOR ? 8 : attribute == CAPABILITY_MINOR ? 0 : 0;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** handle, int) {
    *handle = &context;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

int cuCtxGetCurrent(void** handle) {
    *handle = current;
    return SUCCESS;
}

int cuCtxSetCurrent(void* handle) {
    current = handle;
    return SUCCESS;
}

int cuCtxSynchronize() { return obstacle(); }

int cuStreamCreate(void** stream, unsigned) {
    *stream = new Stream;
    return obstacle();
}

int cuStreamSynchronize(void* handle) {
    if (const int error = obstacle()) return error;
    auto* stream = static_cast<Stream*>(handle);
    if (stream->capturing) return CAPTURE_UNSUPPORTED;
    std::vector<Work> work;
    work.swap(stream->queue);
    for (const Work& piece : work)
        if (!piece.run()) return device.fault;
    return SUCCESS;
}

int cuStreamDestroy_v2(void* handle) {
    if (!device.fault) cuStreamSynchronize(handle);
    delete static_cast<Stream*>(handle);
    return SUCCESS;
}

int cuStreamBeginCapture_v2(void* handle, int) {
    if (const int error = obstacle()) return error;
    auto* stream = static_cast<Stream*>(handle);
    if (stream->capturing) return CAPTURE_UNSUPPORTED;
    stream->capturing = true;
    return SUCCESS;
}

int cuStreamEndCapture(void* handle, void** graph) {
    auto* stream = static_cast<Stream*>(handle);
    if (!stream->capturing) return INVALID_VALUE;
    stream->capturing = false;
    *graph = new Graph{std::move(stream->captured)};
    stream->captured.clear();
    return obstacle();
}

int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = new Graph(*static_cast<Graph*>(graph));
    return obstacle();
}

int cuGraphUpload(void*, void*) { return obstacle(); }

int cuGraphLaunch(void* executable, void* stream) {
    if (const int error = obstacle()) return error;
    for (const Work& work : static_cast<Graph*>(executable)->work)
        if (const int error = enqueue(stream, work)) return error;
    return SUCCESS;
}

int cuGraphExecDestroy(void* executable) {
    delete static_cast<Graph*>(executable);
    return SUCCESS;
}

int cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return SUCCESS;
}

int cuModuleLoadData(void** module, const void* image) {
    // A fatbin, as nvcc writes it. What is in it is compiled from the same source as the emulation.
    constexpr uint32_t FATBIN = 0xba55ed50;
    uint32_t magic;
    std::memcpy(&magic, image, sizeof magic);
    if (magic != FATBIN) return INVALID_IMAGE;
    *module = &context;
    return obstacle();
}

int cuModuleUnload(void*) { return SUCCESS; }

int cuModuleGetFunction(void** function, void*, const char* name) {
    for (const emulation::Kernel* kernel = emulation::Kernel::first; kernel; kernel = kernel->next) {
        if (std::strcmp(kernel->name, name) == 0) {
            *function = const_cast<emulation::Kernel*>(kernel);
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int cuFuncGetAttribute(int* value, int, void*) {
    *value = 32;
    return obstacle();
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned dynamic, void* stream, void** parameters, void** extra) {
    if (const int error = obstacle()) return error;
    const auto* kernel = static_cast<emulation::Kernel*>(function);
    if (bx != kernel->threads || by != 1 || bz != 1 || dynamic || extra) return INVALID_VALUE;
    const auto* bytes = static_cast<const char*>(parameters[0]);
    const std::vector<char> arguments(bytes, bytes + kernel->arguments);
    return enqueue(stream, {[=] {
                       const std::string error = emulation::launch(kernel->name, {gx, gy, gz}, arguments.data(),
                                                                   arguments.size(), {emulation::Order::Forward, true, 1});
                       if (!error.empty()) lost(error);
                       return error.empty();
                   }});
}

int cuMemGetInfo_v2(size_t* free, size_t* all) {
    if (const int error = obstacle()) return error;
    const std::lock_guard<std::mutex> lock(device.mutex);
    *all = total();
    *free = *all - std::min(*all, device.used);
    return SUCCESS;
}

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    if (const int error = obstacle()) return error;
    if (!bytes) return INVALID_VALUE;
    const std::lock_guard<std::mutex> lock(device.mutex);
    if (device.used + bytes > total()) return OUT_OF_MEMORY;
    std::unique_ptr<unsigned char[]> memory(new unsigned char[bytes + 3 * GUARD]);
    std::memset(memory.get(), UNWRITTEN, bytes + 3 * GUARD);
    *address = (uint64_t(memory.get()) + 2 * GUARD) / GUARD * GUARD;
    device.memory[*address] = {std::move(memory), bytes};
    device.used += bytes;
    return SUCCESS;
}

int cuMemFree_v2(uint64_t address) {
    const std::lock_guard<std::mutex> lock(device.mutex);
    const auto found = device.memory.find(address);
    if (found == device.memory.end()) return INVALID_VALUE;
    const auto& [memory, bytes] = found->second;
    const size_t start = address - uint64_t(memory.get());
    for (size_t at = 0; at < bytes + 3 * GUARD; ++at) {
        if ((at < start || at >= start + bytes) && memory[at] != UNWRITTEN) {
            lost("something was written beside an allocation of " + std::to_string(bytes) + " bytes");
            break;
        }
    }
    device.used -= bytes;
    device.memory.erase(found);
    return device.fault;
}

int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void* stream) {
    if (const int error = obstacle()) return error;
    if (!allocated(address, bytes)) return INVALID_VALUE;
    return enqueue(stream, {[=] {
                       std::memset(reinterpret_cast<void*>(address), value, bytes);
                       return true;
                   }});
}

int cuMemcpyHtoDAsync_v2(uint64_t address, const void* from, size_t bytes, void* stream) {
    if (const int error = obstacle()) return error;
    if (!allocated(address, bytes)) return INVALID_VALUE;
    return enqueue(stream, {[=] {
                       std::memcpy(reinterpret_cast<void*>(address), from, bytes);
                       return true;
                   }});
}

int cuMemcpyDtoHAsync_v2(void* to, uint64_t address, size_t bytes, void* stream) {
    if (const int error = obstacle()) return error;
    if (!allocated(address, bytes)) return INVALID_VALUE;
    return enqueue(stream, {[=] {
                       std::memcpy(to, reinterpret_cast<const void*>(address), bytes);
                       return true;
                   }});
}

int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    *memory = std::malloc(bytes);
    std::memset(*memory, UNWRITTEN, bytes);
    return obstacle();
}

int cuMemFreeHost(void* memory) {
    std::free(memory);
    return SUCCESS;
}
}

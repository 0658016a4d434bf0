// Every kernel, as one translation unit: compiled by nvcc for the device, and by a host compiler for `emulation/`.
#include "attention.cuh"
#include "conv.cuh"
#include "embedding.cuh"
#include "group_norm.cuh"
#include "map.cuh"
#include "noise.cuh"
#include "pixels.cuh"
#include "sampler.cuh"

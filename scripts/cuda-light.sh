#!/usr/bin/env bash
# The CUDA kernels' check without a GPU: sanitizers on their emulation, which must also find bugs that are planted; nvcc for
# every architecture; its PTX, interpreted, against the emulation; and the types of the code behind the feature `cuda`.
# What depends on the kernels alone is skipped if it has passed before.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/once.sh

kernels=src/ops/cuda/kernels
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

host=(g++ -std=c++20 -O1 -g -ffp-contract=off -fno-strict-aliasing -Wall -Wextra -Werror -Wno-unknown-pragmas
    -DCUDA_EMULATION -Iemulation/cpp)
address=(-fsanitize=address,undefined -fno-sanitize-recover=undefined)
thread=(-fsanitize=thread -DEMULATION_THREADS)

# Runs a command beside the script, no more of them at a time than there are cores; `finish` fails if one did.
jobs=()
beside() {
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do sleep 0.1; done
    "$@" &
    jobs+=("$!")
}
finish() {
    local job failed=0
    for job in "${jobs[@]}"; do wait "$job" || failed=1; done
    jobs=()
    return $failed
}

# build SANITIZER KERNELS FILE
build() {
    local -n flags="$1"
    "${host[@]}" "${flags[@]}" -I"$2" emulation/cpp/sanitize.cpp "$work/emulator-$1.o" -o "$3"
}

# plant NAME SANITIZER KERNEL FILE PATTERN REPLACEMENT: a copy of the sources in which one line is another must fail.
plant() {
    local name="$1" sanitizer="$2" kernel="$3" file="$4" pattern="$5" replacement="$6"
    local copy="$work/$name"
    cp -r "$kernels" "$copy"
    sed -i "0,/$pattern/s/$pattern/$replacement/" "$copy/$file"
    if cmp -s "$kernels/$file" "$copy/$file"; then
        echo "the planted bug '$name' does not apply any more: $file has no line like '$pattern'"
        return 1
    fi
    build "$sanitizer" "$copy" "$copy/run"
    # A run that hangs has found its bug.
    if timeout 100 "$copy/run" "$kernel" >"$copy/log" 2>&1; then
        echo "the planted bug '$name' was not found"
        return 1
    fi
    echo "  found: $name ($(grep -om1 'sanitize: .*\|SUMMARY: .*\|runtime error: .*' "$copy/log" | cut -c1-110))"
}

sanitizers() {
    local sanitizer
    for sanitizer in address thread; do
        local -n flags="$sanitizer"
        beside "${host[@]}" "${flags[@]}" -I$kernels -c emulation/cpp/emulator.cpp -o "$work/emulator-$sanitizer.o"
    done
    finish
    beside build address $kernels "$work/address"
    beside build thread $kernels "$work/thread"
    finish
    beside "$work/address"
    beside "$work/thread"

    beside plant conv-no-wait address conv conv.cuh 'copy_wait<CONV_STAGES - 2>();' ''
    beside plant conv-no-barrier thread conv conv.cuh '^    __syncthreads();$' ''
    beside plant conv-no-right-edge address conv conv.cuh ' && x < (int)args.width' ''
    beside plant conv-divergent-barrier address conv conv.cuh '^    __syncthreads();$' '    if (warp) __syncthreads();'
    beside plant group-norm-no-barrier thread group_norm group_norm.cuh '^    __syncthreads();$' ''
    beside plant group-norm-one-chunk-more address group_norm group_norm.cuh 'min(begin + args.chunk, args.pixels)' 'begin + args.chunk'
    beside plant attention-no-wait address attention attention.cuh '^    copy_wait<0>();$' ''
    beside plant attention-head-too-far address attention attention.cuh 'q_stride + head \* args.pitch' 'q_stride + (head + 1) * args.pitch'
    beside plant attention-keys-of-queries address attention attention.cuh 'key0 + row < args.keys' 'key0 + row < args.queries'
    beside plant gate-no-end address gate gate.cuh '^  if (index >= .*return;$' ''
    beside plant layer-norm-one-vector-more address layer_norm layer_norm.cuh 'at < args.pitch' 'at <= args.pitch'
    beside plant tokens-no-end address tokens tokens.cuh '^  if (index >= .*return;$' ''
    beside plant unpatch-all-lanes address unpatch tokens.cuh 'at + e < args.channels ? x\[at + e\] : from_float<T>(0.0f)' 'x[at + e]'
    beside plant elementwise-no-end address elementwise elementwise.cuh '^  if (index >= .*return;$' ''
    beside plant normals-no-end address normals noise.cuh 'if (4 \* block + lane < args.count) ' ''
    beside plant pixels-off-boundary address pixels pixels.cuh 'load16(x + i)' 'load16(x + i + 1)'
    beside plant sum-of-half-a-warp address group_norm device.cuh '__shfl_xor_sync(0xffffffffu' '__shfl_xor_sync(0xffffu'
    finish
}

# Compiles for every architecture; no kernel may spill registers.
compiler() {
    local arch
    eval "$(scripts/cuda-toolkit.sh)"
    local nvcc=("$CUDA_HOME/bin/nvcc" -std=c++17 -O3 --fmad=false -Werror all-warnings)
    for arch in 80 89 90; do
        "${nvcc[@]}" -arch=sm_$arch -cubin -Xptxas -v $kernels/kernels.cu -o "$work/sm_$arch" >"$work/sm_$arch.log" 2>&1 ||
            { cat "$work/sm_$arch.log"; return 1; }
        if grep -B1 '[1-9][0-9]* bytes spill' "$work/sm_$arch.log"; then
            echo "a kernel spills registers on sm_$arch"
            return 1
        fi
    done
    "${nvcc[@]}" -arch=compute_80 -ptx -I$kernels -include $kernels/kernels.cu emulation/cpp/probes.cu -o "$work/kernels.ptx"
    ACCORDION_PTX="$work/kernels.ptx" cargo test --release --test ptx -- --include-ignored
    ACCORDION_PTX="$work/kernels.ptx" cargo test --release --test kernels
}

once cuda-sanitizers sanitizers $kernels emulation/cpp scripts/cuda-light.sh
once cuda-compiler compiler $kernels emulation tests/kernels.rs tests/support src/ops scripts/cuda-light.sh scripts/cuda-toolkit.sh
echo "cuda-types"
# What the feature changes: the others are as without it.
ACCORDION_NVCC=none cargo clippy --release --features cuda --lib --bins --test kernels --test device --test text_on_device --test gpu -- -D warnings

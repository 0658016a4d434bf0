#!/usr/bin/env bash
# Builds the binary with the feature `cuda`, kernels included, and runs it on this machine, which needs neither a driver nor a
# GPU: first without, then with a stand-in for the driver's library, whose GPU is the emulation and on which the tests of a GPU
# pass too. The last line sums up what the kernels take.
set -euo pipefail
cd "$(dirname "$0")/.."

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
eval "$(scripts/cuda-toolkit.sh)"
export CUDA_HOME

# The tests bring the binary along; built alone, it would have dependencies of its own.
tests=(cargo test --release --features cuda --test kernels --test device --test gpu)
"${tests[@]}" --no-run
accordion="$("${tests[@]}" --no-run --message-format json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\/accordion\)".*/\1/p')"

# Nothing of CUDA is linked: what it is linked with is on every machine.
if ldd "$accordion" | grep -i cuda; then
    echo "the binary is linked with CUDA, so it does not start without a driver"
    exit 1
fi
"$accordion" bench --subnets 0.250 --batches 1 --threads 1
if [ ! -e /proc/driver/nvidia ]; then
    if "$accordion" serve --devices cuda:0 --check-config >"$work/serve" 2>&1; then
        echo "serve accepts a GPU that is not there"
        exit 1
    fi
    cat "$work/serve"
    if [ "$(wc -l <"$work/serve")" -ne 1 ] || ! grep -q 'no NVIDIA driver' "$work/serve"; then
        echo "serve does not say in one sentence that there is no driver"
        exit 1
    fi
fi

# Where there is a driver, it is the real one that is tried.
if [ ! -e /proc/driver/nvidia ]; then
    g++ -std=c++20 -O2 -shared -fPIC -ffp-contract=off -fno-strict-aliasing -Wall -Wextra -Werror -Wno-unknown-pragmas \
        -DCUDA_EMULATION -Iemulation/cpp -Isrc/ops/cuda/kernels -Wl,-soname,libcuda.so.1 \
        emulation/cpp/emulator.cpp emulation/cpp/driver.cpp -o "$work/libcuda.so.1"
    export LD_LIBRARY_PATH="$work${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
"${tests[@]}" -- --ignored gpu

# Registers, shared memory and spills of each kernel, on the newest architecture.
"$CUDA_HOME/bin/nvcc" -std=c++17 -O3 --fmad=false -arch=sm_90 -cubin -Xptxas -v src/ops/cuda/kernels/kernels.cu \
    -o "$work/cubin" 2>"$work/ptxas"
awk '
    /Function properties for/ { name = $NF }
    / bytes stack frame/ { spills[name] = $5 + $9 }
    /Used [0-9]+ registers/ {
        shared = 0
        for (i = 2; i <= NF; ++i) if ($i ~ /^smem/) shared = $(i - 2)
        for (i = 1; i <= NF; ++i) if ($i == "registers,") registers = $(i - 1)
        line = line sprintf("%s %d/%d/%d, ", name, registers, shared, spills[name])
    }
    END { sub(/, $/, "", line); print "kernels on sm_90 (registers/shared bytes/spilled bytes): " line }
' "$work/ptxas"

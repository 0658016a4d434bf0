#!/usr/bin/env bash
# Installs CUDA's compiler and headers from PyPI, without root, a driver or a GPU: about 0.3 GB, in seconds. Safe to repeat.
# usage: scripts/cuda-toolkit.sh [DIR]
set -euo pipefail
cd "$(dirname "$0")/.."

toolkit="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/accordion/cuda}"
mkdir -p "$toolkit"
toolkit="$(cd "$toolkit" && pwd)"
# All of them, so that the same compiler comes out on every day. cccl and the runtime are headers that cuda_fp16.h includes.
packages=(
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-nvcc==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-nvvm==13.0.88
)

wanted="$(/usr/bin/python3 --version) ${packages[*]}"
if [ "$(cat "$toolkit/made-for" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$toolkit/venv" "$toolkit/home" "$toolkit/made-for"
    /usr/bin/python3 -m venv "$toolkit/venv"
    "$toolkit/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-deps "${packages[@]}"
    ln -s "$(echo "$toolkit"/venv/lib/python3*/site-packages/nvidia/cu13)" "$toolkit/home"
    "$toolkit/home/bin/nvcc" --version >/dev/null
    # Last, so that an installation that was broken off is made again.
    echo "$wanted" >"$toolkit/made-for"
fi
echo "export CUDA_HOME=$toolkit/home"

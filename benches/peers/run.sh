#!/usr/bin/env bash
# Times one denoiser call in Accordion, PyTorch, ONNX Runtime and OpenVINO, by turns, on the CPU.
# compare.py has the flags, sd15.py those after `--model sd15`; both install and build what is missing.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
if [ "${1:-} ${2:-}" = "--model sd15" ]; then
    shift 2
    exec "${PYTHON:-python3}" "$here/sd15.py" "$@"
fi
exec "${PYTHON:-python3}" "$here/compare.py" "$@"

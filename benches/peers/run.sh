#!/usr/bin/env bash
# Times one denoiser call in Accordion, PyTorch, ONNX Runtime and OpenVINO, by turns, on the CPU.
# compare.py has the flags; it installs and builds what is missing.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/compare.py" "$@"

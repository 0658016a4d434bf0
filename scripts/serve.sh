#!/usr/bin/env bash
# Installs what a bare Debian machine with the Rust toolchain lacks to build, builds, and serves; arguments are those of
# `accordion serve`.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh build
exec cargo run --release -- serve "$@"

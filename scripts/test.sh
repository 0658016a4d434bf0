#!/usr/bin/env bash
# Installs what a bare Debian machine with the Rust toolchain lacks to test, and runs the tests; arguments are those of
# `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
exec cargo test --release "$@"

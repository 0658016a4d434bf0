#!/usr/bin/env bash
# Installs what a bare Debian machine with the Rust toolchain lacks to build and test: packages, and a Python environment
# for the clients of tests/clients; with `build` only what building needs. Safe to repeat: what is there already is left
# alone. Needs root only where something is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

# By a command or a file that each package brings. The C compiler is for the allocator.
declare -A packages=([build-essential]=/usr/bin/cc)
[ "${1:-}" = build ] || packages+=(
    [dataset-fashion-mnist]=/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz
    [chromium]=/usr/bin/chromium
    [chromium-driver]=/usr/bin/chromedriver
    [python3-venv]=/usr/share/doc/python3-venv
)
missing=()
for package in "${!packages[@]}"; do
    [ -e "${packages[$package]}" ] || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
    root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
fi
[ "${1:-}" != build ] || exit 0

# The environment is remade when the requirements or the system's Python change.
clients="${XDG_CACHE_HOME:-$HOME/.cache}/accordion/clients"
requirements=tests/clients/requirements.txt
wanted="$(/usr/bin/python3 --version) $(cat "$requirements")"
if [ "$(cat "$clients/made-for" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$clients"
    /usr/bin/python3 -m venv "$clients"
    "$clients/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
    # Last, so that an installation that was broken off is made again.
    echo "$wanted" >"$clients/made-for"
fi

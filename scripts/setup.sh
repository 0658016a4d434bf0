#!/usr/bin/env bash
# Installs what a bare Debian machine with the Rust toolchain lacks to build and test: packages, and the clients and the
# proxy of tests/clients in a folder of their own; with `build` only what building needs. Safe to repeat: what is there
# already is left alone. Needs root only where something is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

root=()
[ "$(id -u)" = 0 ] || root=(sudo)

# By a command or a file that each package brings. The C compiler is for the allocator.
declare -A packages=([build-essential]=/usr/bin/cc)
[ "${1:-}" = build ] || packages+=(
    [dataset-fashion-mnist]=/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz
    [chromium]=/usr/bin/chromium
    [chromium-driver]=/usr/bin/chromedriver
    [curl]=/usr/bin/curl
    [python3-venv]=/usr/share/doc/python3-venv
)
missing=()
for package in "${!packages[@]}"; do
    [ -e "${packages[$package]}" ] || missing+=("$package")
done
# Node may have come from elsewhere than Debian.
[ "${1:-}" = build ] || { command -v node && command -v npm; } >/dev/null || missing+=(nodejs npm)
if [ "${#missing[@]}" -gt 0 ]; then
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
fi
[ "${1:-}" != build ] || exit 0

# The clients are installed anew when what they are or the system's Python or Node changes.
clients="${XDG_CACHE_HOME:-$HOME/.cache}/accordion/clients"
requirements=tests/clients/requirements.txt node_packages=tests/clients/package.json
wanted="$(/usr/bin/python3 --version) $(node --version) $(cat "$requirements" "$node_packages")"
if [ "$(cat "$clients/made-for" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$clients"
    /usr/bin/python3 -m venv "$clients"
    "$clients/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
    cp "$node_packages" "$clients"
    npm install --prefix "$clients" --silent --no-audit --no-fund
    # Unpacked, not installed: installed, it would serve port 80 from now on.
    "${root[@]}" apt-get update -qq
    (cd "$clients" && apt-get download -qq -o APT::Sandbox::User=root nginx)
    dpkg-deb --extract "$clients"/nginx_*.deb "$clients/nginx"
    # Last, so that an installation that was broken off is made again.
    echo "$wanted" >"$clients/made-for"
fi

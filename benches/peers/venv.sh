#!/usr/bin/env bash
# Makes the Python environment of the comparisons where it is missing or outdated, and prints its
# interpreter. ACCORDION_PEERS_VENV names it; PYTHON names the interpreter to make it with.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${ACCORDION_PEERS_VENV:-$HOME/.cache/accordion/peers-venv}
python=$venv/bin/python

# The copy of the requirements is written last: an interrupted or outdated install is done again.
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
    echo "installing what $venv lacks (some 6 GB from scratch)" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt" >&2
    cp "$here/requirements.txt" "$venv/requirements.txt"
fi
echo "$python"

#!/usr/bin/env bash
# Times the FID Inception's features in Accordion and PyTorch, by turns, on the CPU. inception.py has the flags; it installs
# and builds what is missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "$("$here/venv.sh")" "$here/inception.py" "$@"

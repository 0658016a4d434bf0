#!/usr/bin/env bash
# Times a training step of the same network in PyTorch and in Accordion, by turns, on the CPU, and
# prints the ratio of their throughputs. The last line is one JSON object.
set -euo pipefail

usage() {
    cat <<EOF
usage: $(basename "$0") [--rounds N] [--steps N] [--threads N] [--peer-only]

  --rounds N    times that each side is measured, by turns (3)
  --steps N     timed steps in each measurement (20)
  --threads N   threads for either side (all cores)
  --peer-only   measure PyTorch alone

ACCORDION_PEERS_VENV names the Python environment, made on the first run
(default: ~/.cache/accordion/peers-venv). PYTHON names the interpreter to make it with.
EOF
}

rounds=3 steps=20 threads=$(nproc) peer_only=
while (($#)); do
    case $1 in
    --rounds | --steps | --threads)
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || { echo "$1 takes a positive number" >&2; exit 2; }
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    --peer-only) peer_only=1; shift ;;
    -h | --help) usage; exit ;;
    *) usage >&2; exit 2 ;;
    esac
done

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=$("$here/venv.sh")

results=$(mktemp)
trap 'rm -f "$results"' EXIT

# measure SIDE COMMAND...: appends SIDE and the last line that COMMAND prints.
measure() {
    local side=$1 line
    shift
    line=$("$@" | tail -n 1)
    printf '%s\t%s\n' "$side" "$line" >>"$results"
    echo "$side: $line" >&2
}

peer() {
    "$python" "$here/train_step.py" --batch 64 --threads "$threads" --steps "$steps" "$@"
}

ours() (
    cd "$root"
    RAYON_NUM_THREADS=$threads cargo run --release --quiet --bin accordion -- \
        train --config config/train-fashion-mnist.toml --bench-steps "$steps"
)

if [[ -z $peer_only ]]; then
    (cd "$root" && cargo build --release --quiet --bin accordion)
fi

for ((round = 0; round < rounds; round++)); do
    measure pytorch peer
    measure pytorch-channels-last peer --channels-last
    if [[ -z $peer_only ]]; then
        measure ours ours
    fi
done

"$python" - "$results" <<'EOF'
import json
import statistics
import sys

sides = {}
for line in open(sys.argv[1]):
    side, _, report = line.rstrip("\n").partition("\t")
    try:
        report = json.loads(report)
        report["images_per_s"] += 0.0
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{side}: the last line is not a JSON object with images_per_s: {report!r}")
    sides.setdefault(side, []).append(report)

# Where a side says what it trained, the sides have to agree.
for key in ("params", "batch", "threads"):
    values = {r[key] for reports in sides.values() for r in reports if key in r}
    if len(values) > 1:
        sys.exit(f"the sides do not train the same: {key} is {sorted(values)}")

rates = {side: [r["images_per_s"] for r in reports] for side, reports in sides.items()}
rounds = max(map(len, rates.values()))
print(f"{'images/s':<24}" + "".join(f"{f'round {i + 1}':>10}" for i in range(rounds)) + f"{'median':>10}")
for side, values in rates.items():
    row = values + [statistics.median(values)]
    print(f"{side:<24}" + "".join(f"{v:>10.1f}" for v in row))

peer = max(statistics.median(v) for side, v in rates.items() if side != "ours")
summary = {"pytorch_images_per_s": round(peer, 2)}
if "ours" in rates:
    ours = statistics.median(rates["ours"])
    summary = {"ours_images_per_s": round(ours, 2), **summary, "ratio": round(ours / peer, 3)}
print(json.dumps(summary))
EOF

"""Times one denoiser call in Accordion, PyTorch, ONNX Runtime and OpenVINO, by turns, on the CPU in f32.

Before anything is timed, each peer's output has to agree with Accordion's. The table goes to
stdout, and its last line is one JSON object; progress goes to stderr.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from prepare import BATCHES, MODELS, cases
from report import show
from tools import HERE, Tools, processor, run, say

PEERS = ("pytorch", "onnxruntime", "openvino")
PEER_ENV = {
    # oneDNN, which PyTorch and OpenVINO use, can be told elsewhere to compute in bf16.
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    # glibc gives large buffers back after each call and faults them in again at the next: PyTorch,
    # which allocates its activations anew, would lose time to that.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


def positive(kind):
    def parse(text):
        value = kind(text)
        if not value > 0:
            raise ValueError(text)
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def models(text):
    names = text.split(",")
    if unknown := set(names) - set(MODELS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: give some of {', '.join(MODELS)}")
    return names


def flags():
    parser = argparse.ArgumentParser(
        prog="run.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    threads = len(os.sched_getaffinity(0))
    parser.add_argument("--rounds", type=positive(int), default=3, help="turns of each side (%(default)s)")
    parser.add_argument("--threads", type=positive(int), default=threads, help="of each side (all cores)")
    parser.add_argument("--models", type=models, default=list(MODELS), help=f"some of {','.join(MODELS)} (all)")
    parser.add_argument(
        "--seconds", type=positive(float), default=2.0, help="time budget of a measurement (%(default)s)"
    )
    parser.add_argument("--peers-only", action="store_true", help="do not time Accordion")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure PyTorch also as compiled by Inductor; the first run compiles, for minutes",
    )
    return parser.parse_args()


def accordion(tools, case, args, work):
    """What `accordion bench` reports, in the peers' form."""
    path = work / "bench.json"
    chosen = ["--model", case.model_dir, "--subnets", case.subnet, "--batches", ",".join(map(str, BATCHES))]
    limits = ["--threads", args.threads, "--seconds", args.seconds]
    run(tools.accordion, "bench", *chosen, *limits, "--json", path)
    results = json.loads(path.read_text())["results"]
    if any(row["threads"] != args.threads for row in results):
        sys.exit(f"accordion did not run on {args.threads} threads: {results}")
    version = run(tools.accordion, "--version").split()[-1]
    return {"ms": {str(row["batch"]): {"accordion": row["ms"]} for row in results}, "version": version}


def peer(engine, tools, case, args, work):
    env = os.environ | PEER_ENV | {"TMPDIR": str(work)}
    limits = ["--threads", args.threads, "--seconds", args.seconds]
    limits += ["--batches", ",".join(map(str, BATCHES)), *(["--compile"] if args.compile else [])]
    out = run(tools.python, HERE / "infer_peer.py", case.peers, "--engine", engine, *limits, env=env)
    return json.loads(out.splitlines()[-1])


def main():
    args = flags()
    tools = Tools.ready()
    with tempfile.TemporaryDirectory(prefix="accordion-peers-") as work:
        work = Path(work)
        prepared = list(cases(tools, work, args.models, args.threads, args.compile))
        sides = {} if args.peers_only else {"accordion": accordion}
        sides |= {engine: lambda *rest, engine=engine: peer(engine, *rest) for engine in PEERS}
        measured, versions = {side: {} for side in sides}, {}
        for case in prepared:
            for number in range(args.rounds):
                for side, measure in sides.items():
                    report = measure(tools, case, args, work)
                    say(f"{case.model}, {case.subnet}, round {number + 1}, {side}: {report}")
                    for batch in BATCHES:
                        measured[side].setdefault(case.key(batch), []).append(report["ms"][str(batch)])
                    versions[side] = report["version"]
    machine = {"cpu": processor(), "threads": args.threads, "rounds": args.rounds, "versions": versions}
    show(prepared, measured, machine)


if __name__ == "__main__":
    main()

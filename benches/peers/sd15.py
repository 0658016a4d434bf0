"""Times a call of Stable Diffusion 1.5's U-Net and a decode of its VAE, at full size with random weights, in Accordion, PyTorch, ONNX
Runtime and OpenVINO, by turns, on the CPU in f32.

The U-Net reads latents of 64x64 and the VAE makes pictures of 512x512. Before anything is timed, each peer's output has to agree
with Accordion's. Each side runs in a process of its own, one at a time: the weights take 3.4 GB and a peer some 10 GB on the way.
The table goes to stdout, and its last line is one JSON object; progress goes to stderr.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from compare import PEER_ENV, positive
from tools import HERE, Tools, processor, run, say

BATCHES = (1, 2)
ENGINES = ("pytorch", "pytorch-channels-last", "onnxruntime", "openvino")
SUBNET = "0.500"
TOLERANCE = 1e-4


def flags():
    parser = argparse.ArgumentParser(prog="run.sh --model sd15", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive(int), default=2, help="turns of each side (%(default)s)")
    parser.add_argument("--threads", type=positive(int), default=len(os.sched_getaffinity(0)), help="of each side (all cores)")
    parser.add_argument("--seconds", type=positive(float), default=8.0, help="time budget of a measurement (%(default)s)")
    parser.add_argument("--engines", default=",".join(ENGINES), help="some of %(default)s")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/accordion/sd15", help="where some 20 GB are kept (%(default)s)")
    return parser.parse_args()


def prepare(tools, work):
    """The pipeline of random weights, imported, ranked by magnitude and cut to half of the multiply-accumulates."""
    pipeline, model = work / "diffusers", work / "half"
    if not (pipeline / "model_index.json").exists():
        say("making a pipeline of random weights")
        shutil.rmtree(pipeline, ignore_errors=True)
        run(tools.python, HERE / "make_sd15.py", pipeline)
    if not (model / "subnets.toml").exists():
        say("importing, ranking and cutting it")
        for path in (work / "whole", model):
            shutil.rmtree(path, ignore_errors=True)
        run(tools.accordion, "import", pipeline, "--out", work / "whole")
        run(tools.accordion, "rank", "--model", work / "whole", "--method", "magnitude", "--order", "global", "--out", model)
        run(tools.accordion, "allocate", "--model", model, "--target", "macs", "--ratios", SUBNET)
        shutil.rmtree(work / "whole")
    return pipeline, model


def outputs(tools, pipeline, model, work):
    """Inputs for both networks, and what Accordion makes of them."""
    run(tools.python, HERE / "sd15_peer.py", "inputs", pipeline, work / "inputs.safetensors")
    forward = [tools.accordion, "forward", "--model", model, "--input", work / "inputs.safetensors"]
    run(*forward, "--output", work / "eps.safetensors")
    run(*forward, "--part", "vae-decode", "--output", work / "decoded.safetensors")


def accordion(tools, model, args, scratch):
    """Median milliseconds by what was timed."""
    path = scratch / "bench.json"
    chosen = ["--model", model, "--subnets", f"{SUBNET},full", "--batches", ",".join(map(str, BATCHES))]
    # The cost of switching between the two takes ten times as long as a measurement: each alone.
    ms, memory = {}, 0
    for subnet in (SUBNET, "full"):
        chosen[3] = subnet
        run(tools.accordion, "bench", *chosen, "--threads", args.threads, "--seconds", args.seconds, "--json", path)
        report = json.loads(path.read_text())
        ms |= {f"unet {subnet} x{row['batch']}": row["ms"] for row in report["results"]}
        ms["vae decode"] = report["decoder"]["subnets"][-1]["ms"]
        memory = report["weight_bytes"]
    say(f"accordion: {memory / 1e9:.2f} GB of weights of the U-Net")
    return ms


def peer(tools, engine, pipeline, args, scratch):
    env = os.environ | PEER_ENV | {"TMPDIR": str(scratch), "HF_HUB_OFFLINE": "1"}
    command = [tools.python, HERE / "sd15_peer.py", engine, pipeline, args.work, "--threads", args.threads, "--seconds", args.seconds]
    out = subprocess.run([str(part) for part in command], env=env, stdout=subprocess.PIPE, text=True)
    if out.returncode != 0:
        sys.exit(f"{engine} failed with {out.returncode}")
    report = json.loads(out.stdout.splitlines()[-1])
    for name, error in report["errors"].items():
        if not error < TOLERANCE:
            sys.exit(f"{engine}: {name} is {error:.1e} of the range from Accordion's")
    return report["ms"]


def main():
    args = flags()
    tools = Tools.ready()
    args.work.mkdir(parents=True, exist_ok=True)
    pipeline, model = prepare(tools, args.work)
    outputs(tools, pipeline, model, args.work)
    measured = {}
    with tempfile.TemporaryDirectory(prefix="accordion-sd15-") as scratch:
        scratch = Path(scratch)
        for number in range(args.rounds):
            sides = [("accordion", lambda: accordion(tools, model, args, scratch))]
            sides += [(engine, lambda engine=engine: peer(tools, engine, pipeline, args, scratch)) for engine in args.engines.split(",")]
            for side, measure in sides:
                ms = measure()
                say(f"round {number + 1}, {side}: {ms}")
                for name, value in ms.items():
                    measured.setdefault(name, {}).setdefault(side, []).append(value)
    rows = {name: {side: statistics.median(values) for side, values in by.items()} for name, by in measured.items()}
    names = ["accordion", *args.engines.split(",")]
    print(f"{'ms':<16}" + "".join(f"{name:>23}" for name in names) + f"{'ratio':>8}")
    ratios = {}
    for name, by in rows.items():
        peers = [value for side, value in by.items() if side != "accordion"]
        ratios[name] = min(peers) / by["accordion"] if peers else None
        cells = "".join(f"{by[side]:23.0f}" if side in by else f"{'':>23}" for side in names)
        print(f"{name:<16}{cells}" + (f"{ratios[name]:8.2f}" if peers else ""))
    share = rows[f"unet {SUBNET} x1"]["accordion"] / rows["unet full x1"]["accordion"]
    print(f"the subnet of half the multiply-accumulates takes {share:.3f} of the time of full width")
    print(json.dumps({"cpu": processor(), "threads": args.threads, "rounds": args.rounds, "ms": rows, "ratio_vs_fastest_peer": ratios}))


if __name__ == "__main__":
    main()

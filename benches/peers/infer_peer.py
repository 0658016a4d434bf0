"""Checks one peer's denoiser against Accordion's output, then times a call. Prints one JSON line."""

import argparse
import importlib.metadata
import json
import statistics
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from engines import ENGINES

# Of the range of a sample's output. f32 in another order of summation stays well below; bf16 does not.
TOLERANCE = 1e-4
DISTRIBUTIONS = {"pytorch": "torch"}


def worst_error(bind, inputs, expected, batch):
    """The largest error over the range of its sample: a noisy sample must not hide the others."""
    worst = 0.0
    for start in range(0, len(expected), batch):
        part = slice(start, start + batch)
        got = np.asarray(bind([array[part] for array in inputs])())
        axes = (1, 2, 3)
        span = expected[part].max(axes) - expected[part].min(axes)
        worst = max(worst, float((abs(got - expected[part]).max(axes) / span).max()))
    return worst


def median_ms(call, seconds):
    """The median call of `seconds`, after a warm-up of a quarter of that."""
    times = []
    for budget, least in ((seconds / 4, 3), (seconds, 5)):
        times.clear()
        end = time.perf_counter() + budget
        while time.perf_counter() < end or len(times) < least:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="with what export.py wrote, and expected.safetensors")
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--batches", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--compile", action="store_true", help="also time compiled PyTorch")
    args = parser.parse_args()

    samples = load_file(args.directory / "inputs.safetensors")
    inputs = [samples[name] for name in ("x", "sigma", "class_labels") if name in samples]
    expected = load_file(args.directory / "expected.safetensors")["denoised"]
    results, worst = {}, 0.0
    for batch in map(int, args.batches.split(",")):
        results[batch] = {}
        for variant, bind in ENGINES[args.engine](args.directory, batch, args.threads, args.compile):
            error = worst_error(bind, inputs, expected, batch)
            if not error <= TOLERANCE:
                raise SystemExit(
                    f"{args.engine} ({variant}, batch {batch}) differs from Accordion by {error:.1e} of the "
                    f"output's range, which is more than {TOLERANCE:g}: {args.directory}"
                )
            worst = max(worst, error)
            call = bind([np.ascontiguousarray(array[:batch]) for array in inputs])
            results[batch][variant] = round(median_ms(call, args.seconds), 4)
    distribution = DISTRIBUTIONS.get(args.engine, args.engine)
    report = {"ms": results, "error": worst, "version": importlib.metadata.version(distribution)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()

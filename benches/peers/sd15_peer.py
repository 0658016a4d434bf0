"""One engine's side of sd15.py. Usage: sd15_peer.py inputs PIPELINE FILE, or sd15_peer.py ENGINE PIPELINE WORK [--threads N --seconds S].

Prints one JSON object: median milliseconds, and how far its outputs are from Accordion's, as a share of the range.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

BATCHES = (1, 2)


class Unet(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, context):
        return self.net(x, t, context, return_dict=False)[0]


class Decoder(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net.decode(x, return_dict=False)[0]


def inputs(path):
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    times = torch.tensor([500.0, 20.0])
    save_file({"latents_xt": draw(2, 4, 64, 64), "t": times, "context": draw(2, 77, 768), "vae_latent": draw(1, 4, 64, 64)}, path)


def timed(call, seconds):
    """The median of the calls of so many seconds, at least two, after one that is not timed."""
    call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def torch_net(pipeline, part):
    kind, wrap = {"unet": (UNet2DConditionModel, Unet), "vae": (AutoencoderKL, Decoder)}[part]
    return wrap(kind.from_pretrained(pipeline / part).eval())


def exported(pipeline, work, part, example):
    """The ONNX file of a network at this batch."""
    folder = work / f"{part}-{len(example[0])}"
    path = folder / "model.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        net = torch_net(pipeline, part)
        with torch.inference_mode():
            torch.onnx.export(net, example, path, opset_version=18, dynamo=True, external_data=True, verbose=False)
        del net
        gc.collect()
    return path


def engine_of(name, pipeline, work, part, example, threads):
    """A function of the inputs."""
    if name.startswith("pytorch"):
        torch.set_num_threads(threads)
        net = torch_net(pipeline, part)
        last = name.endswith("channels-last")
        if last:
            net = net.to(memory_format=torch.channels_last)

        def call(*args):
            with torch.inference_mode():
                head = args[0].to(memory_format=torch.channels_last) if last else args[0]
                return net(head, *args[1:])

        return call
    path = exported(pipeline, work, part, example)
    if name == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_inputs()]
        return lambda *args: torch.from_numpy(session.run(None, {n: a.numpy() for n, a in zip(names, args)})[0])
    import openvino

    core = openvino.Core()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    model = core.compile_model(core.read_model(path), "CPU", hints)
    return lambda *args: torch.from_numpy(model([a.numpy() for a in args])[model.output(0)].copy())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    if args.engine == "inputs":
        return inputs(args.work)
    given = load_file(args.work / "inputs.safetensors")
    ms, errors = {}, {}

    def compared(name, got, want):
        errors[name] = float((got - want).abs().max() / want.abs().max())

    eps = load_file(args.work / "eps.safetensors")["eps"]
    call = None
    for batch in BATCHES:
        example = tuple(given[name][:batch].contiguous() for name in ("latents_xt", "t", "context"))
        if call is None or not args.engine.startswith("pytorch"):
            call = None
            gc.collect()
            call = engine_of(args.engine, args.pipeline, args.work, "unet", example, args.threads)
        compared(f"unet x{batch}", call(*example), eps[:batch])
        ms[f"unet full x{batch}"] = timed(lambda: call(*example), args.seconds)
    call = None
    gc.collect()
    example = (given["vae_latent"],)
    call = engine_of(args.engine, args.pipeline, args.work, "vae", example, args.threads)
    compared("vae decode", call(*example), load_file(args.work / "decoded.safetensors")["vae_decoded"])
    ms["vae decode"] = timed(lambda: call(*example), args.seconds)
    print(json.dumps({"ms": ms, "errors": errors}))


if __name__ == "__main__":
    sys.exit(main())

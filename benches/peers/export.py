"""Writes what the peers run beside an extracted subnet: ONNX files, compiled PyTorch, and inputs.

Files that are there already are left alone. Every graph is the whole denoiser D(x; sigma, class)
for one fixed batch, so that nothing about shapes is left to be decided at run time.
"""

import argparse
import copy
import logging
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from song_unet import load_extracted

# 18 spells GroupNorm and attention out in small operators, 23 has them whole. Which is faster
# depends on the runtime and on the network.
OPSETS = (18, 23)
SAMPLES = 8
SIGMAS = (0.1, 10.0)


def inputs(net, path):
    """Random samples of the right scale at noise levels from low to high, each of another class."""
    torch.manual_seed(1)
    model = net.model
    sigma = torch.logspace(*torch.tensor(SIGMAS).log10().tolist(), SAMPLES)
    scale = (sigma**2 + net.sigma_data**2).sqrt()[:, None, None, None]
    size = (SAMPLES, model.img_channels, model.img_resolution, model.img_resolution)
    tensors = {"x": torch.randn(size) * scale, "sigma": sigma}
    if model.label_dim:
        tensors["class_labels"] = torch.eye(model.label_dim)[torch.arange(SAMPLES) % model.label_dim]
    save_file(tensors, path)


def onnx(net, args, opset, path):
    torch.onnx.export(
        net, args, path, opset_version=opset, dynamo=True, external_data=False, optimize=True, verbose=False
    )


def compiled(net, args, threads, path):
    """Inductor's code for this machine, with the weights frozen into it in oneDNN's own layouts.

    The number of threads goes into the code too.
    """
    import torch._inductor.config as inductor

    torch.set_num_threads(threads)
    inductor.freezing = True
    args = (args[0].contiguous(memory_format=torch.channels_last), *args[1:])
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    program = torch.export.export(net, args)
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def make(path, write, *args):
    """A file that is there is whole: an interrupted export leaves none under this name."""
    if path.exists():
        return
    part = path.with_name("part-" + path.name)
    write(*args, part)
    os.replace(part, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="what `accordion extract --format torch-names` made")
    parser.add_argument("--batches", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--compile", action="store_true", help="also compile with Inductor")
    args = parser.parse_args()

    # It warns at each export that torchvision, which nothing here uses, is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    net = load_extracted(args.directory)
    make(args.directory / "inputs.safetensors", inputs, net)
    samples = load_file(args.directory / "inputs.safetensors")
    samples = [samples[name] for name in ("x", "sigma", "class_labels") if name in samples]
    for batch in map(int, args.batches.split(",")):
        call = tuple(sample[:batch].contiguous() for sample in samples)
        for opset in OPSETS:
            make(args.directory / f"batch{batch}-opset{opset}.onnx", onnx, net, call, opset)
        if args.compile:
            path = args.directory / f"batch{batch}-threads{args.threads}.pt2"
            with torch.no_grad():
                make(path, compiled, net, call, args.threads)


if __name__ == "__main__":
    main()

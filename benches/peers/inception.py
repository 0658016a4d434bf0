"""Times the FID Inception's features in Accordion and PyTorch, by turns, on the CPU in f32.

A call goes from the bytes of images to their features, the resizing to 299x299 included. The weights
are random, saved by PyTorch and read by both. Before anything is timed, the features have to agree.
The table goes to stdout, and its last line is one JSON object; progress goes to stderr.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tools import ROOT, processor, run, say

BATCHES = (1, 8, 32)
# Of the range of the features. f32 in another order of summation stays well below; bf16 does not.
TOLERANCE = 1e-4


class Conv(nn.Module):
    """A convolution, a batch norm and ReLU."""

    def __init__(self, inputs, outputs, kernel, **options):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


def mean_pool(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Block35(nn.Module):
    def __init__(self, inputs, pooled):
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1 = Conv(inputs, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(inputs, pooled, 1)

    def forward(self, x):
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(mean_pool(x))], 1)


class Block35To17(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch3x3 = Conv(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(288, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x):
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, F.max_pool2d(x, 3, stride=2)], 1)


class Block17(nn.Module):
    def __init__(self, inner):
        super().__init__()
        row, column = {"padding": (0, 3)}, {"padding": (3, 0)}
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1 = Conv(768, inner, 1)
        self.branch7x7_2 = Conv(inner, inner, (1, 7), **row)
        self.branch7x7_3 = Conv(inner, 192, (7, 1), **column)
        self.branch7x7dbl_1 = Conv(768, inner, 1)
        self.branch7x7dbl_2 = Conv(inner, inner, (7, 1), **column)
        self.branch7x7dbl_3 = Conv(inner, inner, (1, 7), **row)
        self.branch7x7dbl_4 = Conv(inner, inner, (7, 1), **column)
        self.branch7x7dbl_5 = Conv(inner, 192, (1, 7), **row)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x):
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), seven, twice, self.branch_pool(mean_pool(x))], 1)


class Block17To8(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch3x3_1 = Conv(768, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(768, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x):
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        pool = F.max_pool2d(x, 3, stride=2)
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), pool], 1)


class Block8(nn.Module):
    def __init__(self, inputs, pool):
        super().__init__()
        row, column = {"padding": (0, 1)}, {"padding": (1, 0)}
        self.pool = pool
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), **row)
        self.branch3x3_2b = Conv(384, 384, (3, 1), **column)
        self.branch3x3dbl_1 = Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), **row)
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), **column)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x):
        three = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(self.pool(x))]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """pytorch-fid's InceptionV3, from bytes [n, height, width, 3] to features [n, 2048]."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = Block35(192, 32)
        self.Mixed_5c = Block35(256, 64)
        self.Mixed_5d = Block35(288, 64)
        self.Mixed_6a = Block35To17()
        self.Mixed_6b = Block17(128)
        self.Mixed_6c = Block17(160)
        self.Mixed_6d = Block17(160)
        self.Mixed_6e = Block17(192)
        self.Mixed_7a = Block17To8()
        self.Mixed_7b = Block8(1280, mean_pool)
        self.Mixed_7c = Block8(2048, lambda x: F.max_pool2d(x, 3, stride=1, padding=1))

    def forward(self, images):
        x = images.permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        # The layout of the weights, which decides that of all that follows.
        if self.Conv2d_2a_3x3.conv.weight.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        else:
            x = x.contiguous()
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2 * x - 1)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


def made():
    """The network with random weights under which no value vanishes or grows."""
    torch.manual_seed(0)
    net = Inception().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
    return net


def times_ms(call, seconds):
    call()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def variants(net, images, compiled):
    """By name: PyTorch's ways to compute."""
    yield "eager", net
    last = made().to(memory_format=torch.channels_last)
    yield "eager, channels last", last
    if compiled:
        yield "compiled", torch.compile(last)


def flags():
    parser = argparse.ArgumentParser(
        prog="inception.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    threads = len(os.sched_getaffinity(0))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (%(default)s)")
    parser.add_argument("--threads", type=int, default=threads, help="of each side (all cores)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time budget of a measurement (%(default)s)")
    parser.add_argument("--side", type=int, default=32, help="rows and columns of the images (%(default)s)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="measure compiled PyTorch too"
    )
    return parser.parse_args()


def bench_binary():
    """The benchmark, built; ACCORDION_INCEPTION_BENCH names one that is there."""
    if given := os.environ.get("ACCORDION_INCEPTION_BENCH"):
        return given
    say("building accordion")
    command = ["cargo", "bench", "--bench", "inception", "--no-run", "--message-format", "json", "--quiet"]
    messages = map(json.loads, run(*command, cwd=ROOT).splitlines())
    paths = [m["executable"] for m in messages if m.get("target", {}).get("name") == "inception"]
    return next(path for path in paths if path)


def ours(binary, work, args, *more):
    chosen = ["--weights", work / "weights.pth", "--images", work / "images.safetensors"]
    limits = ["--batches", ",".join(map(str, BATCHES)), "--seconds", args.seconds, "--threads", args.threads]
    return json.loads(run(binary, *chosen, *limits, *more).splitlines()[-1])["ms"]


def check(name, got, want):
    error = ((got - want).abs().max() / want.abs().max()).item()
    if not error <= TOLERANCE:
        sys.exit(f"{name} differs from eager PyTorch by {error:.1e} of the features' range")
    return error


@torch.inference_mode()
def main():
    args = flags()
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.fp32_precision = "ieee"
    binary = bench_binary()
    net = made()
    images = torch.randint(0, 256, (max(BATCHES), args.side, args.side, 3), dtype=torch.uint8)
    measured = {}
    with tempfile.TemporaryDirectory(prefix="accordion-peers-") as work:
        work = Path(work)
        torch.save(net.state_dict(), work / "weights.pth")
        save_file({"images": images}, work / "images.safetensors")
        want = net(images)
        features = work / "features.safetensors"
        ours(binary, work, argparse.Namespace(seconds=0, threads=args.threads), "--features", features)
        error = check("accordion", load_file(features)["features"], want)
        peers = dict(variants(net, images, args.compile))
        for name, peer in peers.items():
            check(name, peer(images), want)
        for number in range(args.rounds):
            turn = {"accordion": ours(binary, work, args)}
            for name, peer in peers.items():
                turn[name] = {str(n): times_ms(lambda n=n, peer=peer: peer(images[:n]), args.seconds) for n in BATCHES}
            for name, times in turn.items():
                for batch, ms in times.items():
                    median = statistics.median(ms)
                    say(f"round {number + 1}, {name}, {batch}: median {median:.1f} ms, least {min(ms):.1f}")
                    measured.setdefault(name, {}).setdefault(batch, []).append(ms)
    print(f"{processor()}, {args.threads} threads, f32, PyTorch {torch.__version__}; {args.rounds} rounds")
    result = {"error": error}
    for title, value in (("median", statistics.median), ("least", min)):
        rows = {name: {b: value([value(t) for t in turns]) for b, turns in by.items()} for name, by in measured.items()}
        ratios = {}
        print(f"{title + ' ms, images':<20}" + "".join(f"{name:>22}" for name in rows) + f"{'ratio':>8}")
        for batch in map(str, BATCHES):
            fastest = min(ms[batch] for name, ms in rows.items() if name != "accordion")
            ratios[batch] = round(fastest / rows["accordion"][batch], 3)
            print(f"{batch:<20}" + "".join(f"{ms[batch]:>22.1f}" for ms in rows.values()) + f"{ratios[batch]:>8.2f}")
        result[title] = {"ratio_vs_fastest_peer": ratios, "ms": rows}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

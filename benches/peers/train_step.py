"""Times one EDM training step of SongUNet in PyTorch eager mode, on the CPU, in f32.

Prints one JSON line. A step is everything a trainer does between two batches: gather and scale the
images, draw noise levels and noise, drop labels, forward, backward, clip, Adam, moving average.
"""

import argparse
import json
import os
import statistics
import time

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from song_unet import EDMPrecond, SongUNet

P_MEAN, P_STD, SIGMA_DATA = -1.2, 1.2, 0.5
LABEL_DROP = 0.1
CLIP = 1.0
CLASSES = 10


def edm_loss(net, images, labels):
    batch = images.shape[0]
    sigma = (torch.randn(batch) * P_STD + P_MEAN).exp()
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    keep = (torch.rand(batch, 1) >= LABEL_DROP).to(images.dtype)
    noisy = images + torch.randn_like(images) * sigma[:, None, None, None]
    denoised = net(noisy, sigma, F.one_hot(labels, CLASSES) * keep)
    return (weight[:, None, None, None] * (denoised - images).square()).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones")
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format

    net = EDMPrecond(
        SongUNet(
            img_resolution=28,
            img_channels=1,
            label_dim=CLASSES,
            model_channels=32,
            channel_mult=(1, 2, 2),
            num_blocks=1,
            attn_resolutions=(14,),
        ),
        SIGMA_DATA,
    ).to(memory_format=layout)
    net.train()
    params = list(net.parameters())
    optimizer = torch.optim.Adam(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, fused=True)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    images = torch.randint(0, 256, (4096, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (len(images),))

    def step():
        index = torch.randint(0, len(images), (args.batch,))
        batch = (images[index].float() / 127.5 - 1).contiguous(memory_format=layout)
        optimizer.zero_grad(set_to_none=True)
        loss = edm_loss(net, batch, labels[index])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        average.update_parameters(net)
        return loss.item()

    for _ in range(args.warmup):
        step()
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
        if not loss < float("inf"):
            raise SystemExit(f"the loss is {loss}")

    print(
        json.dumps(
            {
                "images_per_s": round(args.batch / statistics.median(seconds), 2),
                "params": sum(p.numel() for p in params),
                "batch": args.batch,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "channels_last": args.channels_last,
            }
        )
    )


if __name__ == "__main__":
    main()

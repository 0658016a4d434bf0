"""Writes a CIFAR-10-sized DDPM++ with random weights, in the form that `accordion import` reads.

The network is the unconditional one of Karras et al. 2022 for 32x32 images, 55.7 M parameters.
Their initialisation would not do: it leaves the residual branches near zero, and a comparison of
outputs would not see what they compute.
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import save_file

from song_unet import from_config

CONFIG = {
    "img_resolution": 32,
    "img_channels": 3,
    "label_dim": 0,
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}


def draw(module):
    """Weights that keep activations of order 1, and biases and norms that are not trivial."""
    if isinstance(module, nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.1)
        nn.init.normal_(module.bias, 0.0, 0.1)
    elif isinstance(module, (nn.Conv2d, nn.Linear)):
        fan_in = module.weight[0].numel()
        nn.init.normal_(module.weight, 0.0, 1 / math.sqrt(fan_in))
        nn.init.normal_(module.bias, 0.0, 0.1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for net.json and net.safetensors")
    args = parser.parse_args()

    torch.manual_seed(0)
    net = from_config(CONFIG)
    net.apply(draw)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({f"model.{k}": v for k, v in net.state_dict().items()}, args.out / "net.safetensors")
    card = {"config": CONFIG, "preconditioning": "edm", "sigma_data": 0.5}
    (args.out / "net.json").write_text(json.dumps(card))


if __name__ == "__main__":
    main()

"""A small pipeline of Stable Diffusion with random weights, and pictures with captions to train it on: Fashion-MNIST, in words.

Usage: captioned.py PIPELINE OUT [COUNT]. PIPELINE is a directory of diffusers whose tokenizer is taken (`tests/goldens/sd_tiny`). OUT gets
`pipeline`, for pictures of 32x32 as latents of 8x8, and `pictures` with COUNT images (10,000 if left out) of Debian's package
dataset-fashion-mnist, as they are in one of three colours that their captions name, with `metadata.jsonl`.
"""

import gzip
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

DATA = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
COLOURS = {"red": (1.0, 0.25, 0.2), "green": (0.3, 0.9, 0.35), "blue": (0.25, 0.45, 1.0)}
SIDE = 32


def idx(name, offset):
    return np.frombuffer(gzip.decompress((DATA / name).read_bytes()), np.uint8)[offset:]


def pictures(out, count):
    out.mkdir(parents=True)
    images = idx("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = idx("train-labels-idx1-ubyte.gz", 8)
    names = list(COLOURS)
    with (out / "metadata.jsonl").open("w") as metadata:
        for index in range(count):
            colour = names[index * 7 % 3]
            grey = np.pad(images[index], (SIDE - 28) // 2)
            rgb = (grey[:, :, None] * np.array(COLOURS[colour])).round().astype(np.uint8)
            Image.fromarray(rgb).save(out / f"{index:05}.png")
            caption = f"a {colour} {CLASSES[labels[index]]}"
            metadata.write(json.dumps({"file_name": f"{index:05}.png", "text": caption}) + "\n")


def pipeline(tokenizer, out):
    torch.manual_seed(0)
    ids = len(json.loads((tokenizer / "tokenizer" / "vocab.json").read_text()))
    start, end = ids - 2, ids - 1
    text = CLIPTextConfig(
        vocab_size=ids, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=start, eos_token_id=end, pad_token_id=end,
    )
    CLIPTextModel(text).save_pretrained(out / "text_encoder")
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[32, 64, 64], layers_per_block=1, norm_num_groups=16, sample_size=SIDE,
    ).save_pretrained(out / "vae")
    UNet2DConditionModel(
        sample_size=SIDE // 4, down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"], block_out_channels=[64, 128], layers_per_block=1,
        norm_num_groups=16, cross_attention_dim=64, attention_head_dim=4,
    ).save_pretrained(out / "unet")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ).save_pretrained(out / "scheduler")
    shutil.copytree(tokenizer / "tokenizer", out / "tokenizer")
    index = json.loads((tokenizer / "model_index.json").read_text())
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for part in ("unet", "vae", "text_encoder"):
        sizes = [p.stat().st_size for p in (out / part).glob("*.safetensors")]
        print(f"{part}: {sum(sizes) / 4e6:.2f} M parameters")


def main(tokenizer, out, count=10_000):
    pictures(Path(out) / "pictures", int(count))
    pipeline(Path(tokenizer), Path(out) / "pipeline")


if __name__ == "__main__":
    main(*sys.argv[1:])

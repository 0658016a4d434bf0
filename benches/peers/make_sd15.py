"""Writes a pipeline with the sizes of Stable Diffusion 1.5 and random weights. Usage: make_sd15.py DIR.

The vocabulary is that of the tests' tiny pipeline: no registry has CLIP's, and what is timed does not read it.
"""

import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

TINY = Path(__file__).resolve().parents[2] / "tests/goldens/sd_tiny"
IDS = 894


def main(path):
    path = Path(path)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
    )
    unet.save_pretrained(path / "unet")
    del unet
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512, **levels).save_pretrained(path / "vae")
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768}
    CLIPTextModel(CLIPTextConfig(vocab_size=IDS, **text)).save_pretrained(path / "text_encoder")
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(TINY / part, path / part)
    shutil.copy(TINY / "model_index.json", path)


if __name__ == "__main__":
    main(*sys.argv[1:])

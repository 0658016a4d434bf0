"""Whether a pipeline that `accordion extract --format diffusers` wrote draws in diffusers what the original one draws.

Usage: pipeline.py ORIGINAL EXTRACTED [STEPS]. Both are directories of diffusers. Prints the largest difference, in grey levels, and
fails where there is one of more than a level, or a prompt has other tokens.
"""

import sys

import numpy
import torch
from diffusers import StableDiffusionPipeline

PROMPTS = [
    "an oil painting of a wooden boat at sunset, highly detailed",
    "CAFÉ crème, 42 of them; it's 3.14 (日本の城 🏯)",
    "  two  spaces\tand a newline\n",
]


def main(original, extracted, steps=10):
    pipelines = [StableDiffusionPipeline.from_pretrained(path, safety_checker=None) for path in (original, extracted)]
    unet, vae = pipelines[0].unet, pipelines[0].vae
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, vae.config.latent_channels, unet.config.sample_size, unet.config.sample_size, generator=generator)
    most = 0
    for prompt in PROMPTS:
        tokens = [pipeline.tokenizer(prompt).input_ids for pipeline in pipelines]
        assert tokens[0] == tokens[1], (prompt, tokens)
        drawn = []
        for pipeline in pipelines:
            pipeline.set_progress_bar_config(disable=True)
            image = pipeline(prompt, negative_prompt="blurry", latents=latents.clone(), num_inference_steps=int(steps)).images[0]
            drawn.append(numpy.asarray(image).astype(int))
        assert drawn[0].std() > 1, "an even image would say nothing"
        most = max(most, int(abs(drawn[0] - drawn[1]).max()))
    print(f"{len(PROMPTS)} prompts, {steps} steps: at most {most} grey levels apart")
    assert most <= 1


if __name__ == "__main__":
    main(*sys.argv[1:])

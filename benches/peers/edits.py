"""What diffusers' own pipelines make of a picture, and of a mask: the fixture that `tests/edits.rs` holds our images against.

Usage: edits.py PIPELINE OUT.safetensors. PIPELINE is a directory of diffusers of tiny sizes. Both halves of what is random are made equal
instead: the noise is that of this program's counter-based generator for seed 7, and latents are the means of what the encoder makes.
"""

import sys

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as img2img
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as inpaint
from PIL import Image
from safetensors.torch import save_file

SEED = 7
PROMPT = "a photo of a cat"
STEPS = 10
SCHEDULERS = {"ddim": DDIMScheduler, "dpmpp2m": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}
CASES = [
    # A name, the solver, the strength, whether there is a mask, channels that the network is given.
    ("ddim_started", "ddim", 0.6, False, 4),
    ("dpmpp2m_started", "dpmpp2m", 0.5, False, 4),
    ("ddim_masked", "ddim", 1.0, True, 4),
    ("euler_masked", "euler", 0.7, True, 4),
    ("ddim_inpainting", "ddim", 1.0, True, 9),
    ("dpmpp2m_inpainting", "dpmpp2m", 0.6, True, 9),
]


def normals(count):
    """Standard normals of (seed 7, image 0, draw 0): Philox4x32-10 and Box-Muller, as `src/philox.rs` says."""
    counter = [np.arange((count + 3) // 4, dtype=np.uint64)] + [np.zeros((count + 3) // 4, dtype=np.uint64)] * 3
    key, word = [SEED, 0], np.uint64(0xFFFFFFFF)
    for _ in range(10):
        products = [np.uint64(factor) * counter[at] for factor, at in ((0xD2511F53, 0), (0xCD9E8D57, 2))]
        (high0, low0), (high1, low1) = [(product >> np.uint64(32), product & word) for product in products]
        counter = [high1 ^ counter[1] ^ np.uint64(key[0]), low1, high0 ^ counter[3] ^ np.uint64(key[1]), low0]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    words = [lane.astype(np.float64) for lane in counter]
    lanes = []
    for radius, angle in (words[:2], words[2:]):
        length = np.sqrt(-2.0 * np.log((radius + 1.0) / 2.0**32))
        lanes += [length * np.cos(2.0 * np.pi * angle / 2.0**32), length * np.sin(2.0 * np.pi * angle / 2.0**32)]
    return np.stack(lanes, axis=1).reshape(-1)[:count].astype(np.float32)


def picture(size):
    """A picture of smooth colours, and a mask of a disc."""
    y, x = np.mgrid[0:size, 0:size] / size
    colours = np.stack([255 * x, 255 * y, 127 + 120 * np.sin(9 * x * y)], axis=2)
    disc = (x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.09
    return Image.fromarray(colours.astype(np.uint8)), Image.fromarray((255 * disc).astype(np.uint8), "L")


def inpainting(unet):
    """The same network, given a mask and a picture as well."""
    config = dict(unet.config)
    config["in_channels"] = 9
    wide = UNet2DConditionModel.from_config(config)
    state = unet.state_dict()
    weight = state["conv_in.weight"]
    more = torch.from_numpy(0.1 * normals(weight.shape[0] * 5 * 9).reshape(weight.shape[0], 5, 3, 3))
    state["conv_in.weight"] = torch.cat([weight, more], dim=1)
    wide.load_state_dict(state)
    return wide


def main(pipeline, out):
    base = StableDiffusionImg2ImgPipeline.from_pretrained(pipeline, safety_checker=None)
    wide = inpainting(base.unet)
    size = base.unet.config.sample_size * base.vae_scale_factor
    image, mask = picture(size)
    rows = base.unet.config.sample_size
    noise = torch.from_numpy(normals(rows * rows * 4)).reshape(1, rows, rows, 4).permute(0, 3, 1, 2)
    for module in (img2img, inpaint):
        module.randn_tensor = lambda shape, **_: noise.expand(shape)
        module.retrieve_latents = lambda encoded, **_: encoded.latent_dist.mode()
    tensors = {
        "image": torch.from_numpy(np.array(image)),
        "mask": torch.from_numpy(np.array(mask)),
        "conv_in.weight": wide.state_dict()["conv_in.weight"],
    }
    for name, solver, strength, has_mask, channels in CASES:
        scheduler = SCHEDULERS[solver].from_config(base.scheduler.config, timestep_spacing="leading")
        parts = {**base.components, "scheduler": scheduler, "unet": wide if channels == 9 else base.unet}
        kind = StableDiffusionInpaintPipeline if has_mask else StableDiffusionImg2ImgPipeline
        pipe = kind(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        given = {"mask_image": mask, "height": size, "width": size} if has_mask else {}
        drawn = pipe(
            PROMPT, image=image, strength=strength, num_inference_steps=STEPS, guidance_scale=7.5, output_type="np", **given
        ).images[0]
        tensors[name] = torch.from_numpy((255 * drawn).round().astype(np.uint8)).contiguous()
    save_file(tensors, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Whether latents of a pipeline whose U-Net predicts v are those of diffusers' own solvers.

Usage: v_prediction.py PIPELINE TENSORS DRAWN SOLVER. PIPELINE is a directory of diffusers, TENSORS has `initial_latents` and
`guidance_context`, DRAWN the `latents` that `accordion forward --part sample` made of them in 10 steps with guidance 7.5, SOLVER is `ddim` or
`dpmpp2m`. Prints the largest difference as a share of the range, and fails where it is more than 2e-5.
"""

import sys

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from safetensors.torch import load_file

STEPS = 10
GUIDANCE = 7.5


def main(pipeline, tensors, drawn, solver):
    kinds = {"ddim": (DDIMScheduler, {}), "dpmpp2m": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True})}
    kind, options = kinds[solver]
    scheduler = kind.from_pretrained(f"{pipeline}/scheduler", **options)
    assert scheduler.config.prediction_type == "v_prediction", scheduler.config.prediction_type
    unet = UNet2DConditionModel.from_pretrained(f"{pipeline}/unet").double()
    inputs = load_file(tensors)
    context = inputs["guidance_context"].double()
    scheduler.set_timesteps(STEPS)
    latents = inputs["initial_latents"].double() * scheduler.init_noise_sigma
    with torch.no_grad():
        for time in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([latents, latents]), time)
            negative, positive = unet(both, time, encoder_hidden_states=context).sample.chunk(2)
            latents = scheduler.step(negative + GUIDANCE * (positive - negative), time, latents).prev_sample
    error = (load_file(drawn)["latents"].double() - latents).abs().max() / (latents.max() - latents.min())
    print(f"{solver}: {error:.1e} of the range")
    assert error < 2e-5


if __name__ == "__main__":
    main(*sys.argv[1:])

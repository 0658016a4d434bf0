"""Gradients of a training step of a pipeline of Stable Diffusion in PyTorch: the fixture that `src/training/goldens.rs` holds ours against.

Usage: text_training.py PIPELINE OUT.safetensors. PIPELINE is a directory of diffusers of tiny sizes. Of the gradient of each weight there
are its norm and its dot product with the standard normals of this program's generator, both of the tensor in the layout of diffusers. All
is computed in f64.
"""

import json
import sys

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from edits import normals
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

CAPTIONS = ["a photo of a cat", ""]
STEPS = [100, 700]
MIN_SNR = 5.0
KL = 1e-2


def pictures(size):
    """Two pictures of smooth colours, [2, size, size, 3] in bytes."""
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64) / size] * 2, indexing="ij")
    first = torch.stack([255 * x, 255 * y, 127 + 120 * torch.sin(9 * x * y)], dim=2)
    second = torch.stack([127 + 120 * torch.cos(20 * x), 200 * (1 - y), 255 * x * y], dim=2)
    return torch.stack([first, second]).to(torch.uint8)


def latents(pixels, seed):
    """Standard normals of the shape of latents of so many pixels, channels last, drawn by torch."""
    return torch.randn(2, pixels, pixels, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first(tensor):
    """Channels first."""
    return tensor.permute(0, 3, 1, 2)


def projected(module, rename=lambda name: name):
    """Norms and dot products of the gradients of a module, by sorted name."""
    named = sorted((rename(name), parameter.grad) for name, parameter in module.named_parameters())
    norms, dots = [], []
    for _, gradient in named:
        flat = gradient.flatten()
        norms.append(flat.norm())
        dots.append(flat @ torch.from_numpy(normals(flat.numel())).double())
    return [name for name, _ in named], torch.stack([torch.stack(norms), torch.stack(dots)], dim=1)


def main(pipeline, out):
    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet").double()
    vae = AutoencoderKL.from_pretrained(pipeline, subfolder="vae").double()
    text_encoder = CLIPTextModel.from_pretrained(pipeline, subfolder="text_encoder").double()
    tokenizer = CLIPTokenizer.from_pretrained(pipeline, subfolder="tokenizer")
    rows, scale = unet.config.sample_size, vae.config.scaling_factor
    images = pictures(rows * 2 ** (len(vae.config.block_out_channels) - 1))
    x = first(images.double() / 127.5 - 1)
    tensors, names = {"pictures": images}, {}

    # The denoiser and the encoder of texts.
    with torch.no_grad():
        encoded = vae.encode(x).latent_dist
    tensors["moments"] = torch.cat([encoded.mean * scale, encoded.std * scale], dim=1).permute(0, 2, 3, 1)
    x0 = first(latents(rows, 1)) * encoded.std * scale + encoded.mean * scale
    noise = first(latents(rows, 2))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)[STEPS]
    noisy = kept.sqrt().view(-1, 1, 1, 1) * x0 + (1 - kept).sqrt().view(-1, 1, 1, 1) * noise
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    tensors |= {"x0": x0.permute(0, 2, 3, 1), "noise": noise.permute(0, 2, 3, 1), "steps": torch.tensor(STEPS)}
    for name, most in (("plain", None), ("min_snr", MIN_SNR)):
        for module in (unet, text_encoder):
            module.zero_grad()
        predicted = unet(noisy, torch.tensor(STEPS), text_encoder(ids).last_hidden_state).sample
        ratio = kept / (1 - kept)
        weight = torch.ones(2) if most is None else ratio.clamp(max=most) / ratio
        loss = (((predicted - noise) ** 2).mean(dim=(1, 2, 3)) * weight).mean()
        loss.backward()
        tensors[f"{name}.loss"] = loss.detach()[None]
        names["unet"], tensors[f"{name}.unet"] = projected(unet)
        names["text_encoder"], tensors[f"{name}.text_encoder"] = projected(text_encoder, lambda name: name.removeprefix("text_model."))

    # The autoencoder.
    encoded = vae.encode(x).latent_dist
    chance = first(latents(rows, 3))
    decoded = vae.decode(encoded.mean + encoded.std * chance).sample
    divergence = 0.5 * (encoded.mean**2 + encoded.var - 1 - encoded.logvar)
    loss = ((decoded - x) ** 2).mean() + KL * divergence.mean()
    loss.backward()
    tensors |= {"vae.loss": loss.detach()[None], "vae.chance": chance.permute(0, 2, 3, 1)}
    names["vae"], tensors["vae"] = projected(vae)

    def stored(tensor):
        return (tensor.float() if tensor.is_floating_point() else tensor).detach().contiguous()

    save_file({name: stored(tensor) for name, tensor in tensors.items()}, out, metadata={"names": json.dumps(names)})


if __name__ == "__main__":
    main(*sys.argv[1:])

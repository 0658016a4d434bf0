"""How near the decoder's subnets of a captioned model give pictures back, in dB of peak signal to noise.

Usage: decoded.py ACCORDION PICTURES RANKED MODEL... PICTURES is the folder of `captioned.py`, of which
256 are taken. RANKED and each MODEL are model directories of one autoencoder, with decoder subnets. Prints, for each MODEL and subnet, the dB
to the picture and to what the full decoder of RANKED makes of the same latents.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

FIRST, COUNT = 9000, 256


def psnr(a, b):
    error = np.mean((a - b) ** 2)
    return 10 * np.log10(4 / error) if error else np.inf


def forward(accordion, model, part, tensors, *more):
    with tempfile.TemporaryDirectory() as work:
        given, made = f"{work}/in.safetensors", f"{work}/out.safetensors"
        save_file(tensors, given)
        subprocess.run(
            [accordion, "forward", "--model", model, "--input", given, "--output", made, "--part", part, *more], check=True
        )
        return load_file(made)


def main(accordion, folder, ranked, *models):
    names = [Path(folder) / f"{index:05}.png" for index in range(FIRST, FIRST + COUNT)]
    pictures = np.stack([np.asarray(Image.open(name).convert("RGB"), np.float32) for name in names])
    pictures = np.ascontiguousarray((pictures / 127.5 - 1).transpose(0, 3, 1, 2))
    latents = {"vae_latent": forward(accordion, ranked, "vae-encode", {"vae_image": pictures})["vae_mean"]}
    before = forward(accordion, ranked, "vae-decode", latents)["vae_decoded"]
    for model in (ranked, *models):
        for subnet in tomllib.loads((Path(model) / "decoder_subnets.toml").read_text())["subnet"]:
            name = subnet["name"]
            made = forward(accordion, model, "vae-decode", latents, "--subnet", name)["vae_decoded"]
            print(f"{model} {name}: {psnr(made, pictures):.1f} dB to the picture, {psnr(made, before):.1f} dB to the full one's")


if __name__ == "__main__":
    main(*sys.argv[1:])

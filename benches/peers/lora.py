"""What diffusers makes of a LoRA: the fixture that `tests/pipelines.rs` holds our merging against.

Usage: lora.py PIPELINE OUT_PREFIX. PIPELINE is a directory of diffusers of tiny sizes. Writes OUT_PREFIX.kohya.safetensors and
OUT_PREFIX.diffusers.safetensors, the same LoRA under both kinds of names, and OUT_PREFIX.expected.safetensors, the weights that diffusers
has after it fused each of them at the scale 0.7.
"""

import sys

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

SCALE = 0.7
RANK = 2
ALPHA = 1.0
UNET = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.1.resnets.0.conv1",
]
TEXT = ["text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc1"]


def module(root, path):
    for part in path.split("."):
        root = getattr(root, part) if hasattr(root, part) else root
    return root


def main(pipeline, prefix):
    torch.manual_seed(3)
    pipe = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None)
    kohya, peft = {}, {}
    layers = [("unet", "lora_unet_", pipe.unet, path) for path in UNET] + [("text_encoder", "lora_te_", pipe.text_encoder, path) for path in TEXT]
    for part, short, network, path in layers:
        weight = module(network, path).weight
        down = 0.3 * torch.randn(RANK, *weight.shape[1:])
        up = 0.3 * torch.randn(weight.shape[0], RANK, *([1, 1] if weight.dim() == 4 else []))
        name = short + path.replace(".", "_")
        kohya |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
        # There is no alpha in these files: it is in the values.
        peft |= {f"{part}.{path}.lora_A.weight": down, f"{part}.{path}.lora_B.weight": up * (ALPHA / RANK)}
    save_file(kohya, f"{prefix}.kohya.safetensors")
    save_file(peft, f"{prefix}.diffusers.safetensors")
    expected = {}
    for kind in ("kohya", "diffusers"):
        pipe = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None)
        pipe.load_lora_weights(f"{prefix}.{kind}.safetensors")
        pipe.fuse_lora(lora_scale=SCALE)
        pipe.unload_lora_weights()
        fused = {f"{part}.{path}": module(getattr(pipe, part), path).weight.detach().contiguous() for part, _, _, path in layers}
        # Of kohya's names for the encoder of texts this diffusers makes names that this transformers does not know.
        for name, weight in fused.items():
            is_known = name not in expected or name.startswith("text_encoder")
            assert is_known or torch.allclose(expected[name], weight, atol=1e-6), name
        expected |= fused
    save_file(expected, f"{prefix}.expected.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])

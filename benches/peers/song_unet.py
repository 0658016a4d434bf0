"""SongUNet (the DDPM++ variant) in plain PyTorch, the network that Accordion trains and serves.

The architecture is the one of Karras et al., "Elucidating the Design Space of Diffusion-Based
Generative Models" (2022), standard encoder and decoder, box resampling. Parameters carry the names
of the public checkpoints, so weights exported under those names load with `load_public`; what
`accordion extract --format torch-names` makes loads with `load_extracted`.

    python song_unet.py --check-goldens DIR

compares the module with stored outputs of an independent implementation.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

SKIP_SCALE = math.sqrt(0.5)
EPS = 1e-6


def group_norm(channels, groups=None):
    return nn.GroupNorm(groups or min(32, channels // 4), channels, eps=EPS)


def xavier_(layer, gain=1.0):
    """Uniform Xavier weights and a zero bias, as in the paper; gain scales the weights."""
    nn.init.xavier_uniform_(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(gain)
    nn.init.zeros_(layer.bias)
    return layer


def conv(cin, cout, kernel, gain=1.0):
    return xavier_(nn.Conv2d(cin, cout, kernel, padding=kernel // 2), gain)


def linear(cin, cout):
    return xavier_(nn.Linear(cin, cout))


class Block(nn.Module):
    """Residual block with optional resampling by two and optional self-attention.

    The residual stream does not see two widths, which a subnet may narrow: `inner`, between the two
    convolutions, normalised in `groups`, and `dim`, of all heads together.
    """

    def __init__(
        self,
        cin,
        cout,
        emb,
        up=False,
        down=False,
        attention=False,
        heads=1,
        dropout=0.0,
        inner=None,
        groups=None,
        dim=None,
    ):
        super().__init__()
        self.up, self.down, self.dropout = up, down, dropout
        self.heads = heads if attention else 0
        inner = inner or cout
        self.norm0 = group_norm(cin)
        self.conv0 = conv(cin, inner, 3)
        self.affine = linear(emb, inner)
        self.norm1 = group_norm(inner, groups)
        self.conv1 = conv(inner, cout, 3, gain=1e-5)
        self.skip = conv(cin, cout, 1) if up or down or cin != cout else None
        if self.heads:
            dim = dim or cout
            self.norm2 = group_norm(cout)
            self.qkv = conv(cout, 3 * dim, 1, gain=math.sqrt(0.2))
            self.qkv_in_parts = False
            self.proj = conv(dim, cout, 1, gain=1e-5)

    def resample(self, x):
        if self.up:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.down:
            return F.avg_pool2d(x, 2)
        return x

    def shortcut(self, x):
        if self.skip is None:
            return x
        if self.up:  # a 1x1 convolution commutes with nearest upsampling: do it where it is small
            return self.resample(self.skip(x))
        return self.skip(self.resample(x))

    def qkv_parts(self):
        """The weight and bias with q, k and v each in one piece; stored rows go by (head, channel, {q,k,v})."""
        if self.qkv_in_parts:
            return self.qkv.weight, self.qkv.bias
        rows, channels = self.qkv.weight.shape[:2]
        weight = self.qkv.weight.view(self.heads, -1, 3, channels).permute(2, 0, 1, 3)
        bias = self.qkv.bias.view(self.heads, -1, 3).permute(2, 0, 1)
        return weight.reshape(rows, channels, 1, 1), bias.reshape(rows)

    def freeze(self):
        """Reorders the weights once for all calls; they no longer load under the public names."""
        if self.heads:
            weight, bias = self.qkv_parts()
            self.qkv.weight, self.qkv.bias = nn.Parameter(weight), nn.Parameter(bias)
            self.qkv_in_parts = True

    def attend(self, x):
        batch, _, height, width = x.shape
        qkv = F.conv2d(self.norm2(x), *self.qkv_parts())
        qkv = qkv.flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).contiguous()
        q, k, v = qkv.unbind(1)
        out = F.scaled_dot_product_attention(q, k, v)
        # Tokens first is channels-last memory; the convolution takes either layout.
        out = out.transpose(1, 2).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        return self.proj(out)

    def forward(self, x, emb):
        h = self.conv0(self.resample(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        x = (self.conv1(h) + self.shortcut(x)) * SKIP_SCALE
        if self.heads:
            x = (self.attend(x) + x) * SKIP_SCALE
        return x


class SongUNet(nn.Module):
    def __init__(
        self,
        img_resolution,
        img_channels,
        label_dim=0,
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        num_blocks=4,
        attn_resolutions=(16,),
        dropout=0.0,
        pipe_widths=None,
        norm_groups=None,
    ):
        """`pipe_widths` and `norm_groups` are those of a subnet, by name; whole without them."""
        super().__init__()
        pipe_widths, norm_groups = pipe_widths or {}, norm_groups or {}
        emb = 4 * model_channels
        self.model_channels = model_channels
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim

        if label_dim:
            self.map_label = nn.Linear(label_dim, model_channels)
            nn.init.normal_(self.map_label.weight)
            nn.init.zeros_(self.map_label.bias)
        self.map_layer0 = linear(model_channels, emb)
        self.map_layer1 = linear(emb, emb)
        half = model_channels // 2
        freqs = (1 / 10000) ** (torch.arange(half, dtype=torch.float32) / (half - 1))
        self.register_buffer("freqs", freqs, persistent=False)

        def block(name, cin, cout, **options):
            options["inner"] = pipe_widths.get(f"{name}.conv")
            options["dim"] = pipe_widths.get(f"{name}.attn")
            options["groups"] = norm_groups.get(f"{name}.norm1")
            return Block(cin, cout, emb, dropout=dropout, **options)

        def encoder(name, *args, **options):
            self.enc[name] = block(f"enc.{name}", *args, **options)

        def decoder(name, *args, **options):
            self.dec[name] = block(f"dec.{name}", *args, **options)

        self.enc = nn.ModuleDict()
        channels = model_channels
        widths = []  # of every encoder output, in order: the decoder takes them back from the end
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = conv(img_channels, channels, 3)
            else:
                encoder(f"{res}x{res}_down", channels, channels, down=True)
            widths.append(channels)
            for i in range(num_blocks):
                cin, channels = channels, model_channels * mult
                attention = res in attn_resolutions
                encoder(f"{res}x{res}_block{i}", cin, channels, attention=attention)
                widths.append(channels)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            if level == len(channel_mult) - 1:
                decoder(f"{res}x{res}_in0", channels, channels, attention=True)
                decoder(f"{res}x{res}_in1", channels, channels)
            else:
                decoder(f"{res}x{res}_up", channels, channels, up=True)
            for i in range(num_blocks + 1):
                cin, channels = channels + widths.pop(), model_channels * mult
                attention = i == num_blocks and res in attn_resolutions
                decoder(f"{res}x{res}_block{i}", cin, channels, attention=attention)
        self.dec[f"{img_resolution}x{img_resolution}_aux_norm"] = group_norm(channels)
        self.dec[f"{img_resolution}x{img_resolution}_aux_conv"] = conv(
            channels, img_channels, 3, gain=1e-5
        )

    def freeze(self):
        """For inference alone: what does not depend on the input is done once."""
        for module in self.modules():
            if isinstance(module, Block):
                module.freeze()
        return self.eval()

    def embed(self, noise_labels, class_labels):
        angles = noise_labels[:, None] * self.freqs
        emb = torch.cat([angles.sin(), angles.cos()], dim=1)
        if self.label_dim:
            emb = emb + self.map_label(class_labels * math.sqrt(self.label_dim))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(self, x, noise_labels, class_labels=None):
        emb = self.embed(noise_labels, class_labels)
        skips = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if name.endswith("_aux_norm"):
                x = F.silu(layer(x))
            elif name.endswith("_aux_conv"):
                x = layer(x)
            else:
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, emb)
        return x


def column(v):
    return v[:, None, None, None]


class EDMPrecond(nn.Module):
    """D(x; sigma) with the scalings of the EDM paper."""

    def __init__(self, model, sigma_data=0.5):
        super().__init__()
        self.model, self.sigma_data = model, sigma_data

    def forward(self, x, sigma, class_labels=None):
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data / total.sqrt()
        c_in = 1 / total.sqrt()
        out = self.model(column(c_in) * x, sigma.log() / 4, class_labels)
        return column(c_skip) * x + column(c_out) * out


class VPPrecond(nn.Module):
    """D(x; sigma) with the scalings of the variance-preserving process."""

    def __init__(self, model, beta_d=19.9, beta_min=0.1, steps=1000):
        super().__init__()
        self.model, self.beta_d, self.beta_min, self.steps = model, beta_d, beta_min, steps

    def forward(self, x, sigma, class_labels=None):
        log_total = (1 + sigma**2).log()
        time = ((self.beta_min**2 + 2 * self.beta_d * log_total).sqrt() - self.beta_min) / self.beta_d
        c_in = 1 / (sigma**2 + 1).sqrt()
        out = self.model(column(c_in) * x, (self.steps - 1) * time, class_labels)
        return x - column(sigma) * out


def load_public(model, tensors):
    """Loads a state dict in public names: a leading `model.` is dropped, as are the box filters."""
    state = {}
    for name, value in tensors.items():
        if name.endswith("resample_filter"):
            if not torch.allclose(value, torch.full((1, 1, 2, 2), 0.25)):
                raise ValueError(f"{name}: only the [1, 1] filter is supported")
            continue
        state[name.removeprefix("model.")] = value
    model.load_state_dict(state, strict=True)
    return model


def from_config(config, norm_groups=None):
    fixed = {
        "embedding_type": "positional",
        "encoder_type": "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 1, "channel_mult_emb": 4,
        "resample_filter": [1, 1],
        "augment_dim": 0,
    }
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} = {config[key]!r} is not supported")
    options = {k: v for k, v in config.items() if k not in fixed}
    return SongUNet(**options, norm_groups=norm_groups)


def load_extracted(directory):
    """The frozen denoiser D(x; sigma, class) of what `accordion extract --format torch-names` made."""
    from safetensors.torch import load_file

    card = json.loads((directory / "config.json").read_text())
    if card["preconditioning"] != "edm":
        raise ValueError(f"preconditioning {card['preconditioning']!r} is not measured")
    net = from_config(card["config"], card["norm_groups"])
    load_public(net, load_file(directory / "weights.safetensors"))
    net.freeze().requires_grad_(False)
    return EDMPrecond(net, card["sigma_data"]).eval()


def check_goldens(directory, tolerance=1e-5):
    from safetensors.torch import load_file

    worst = 0.0
    for name in ("song_unet_vp_cond", "song_unet_edm_uncond"):
        spec = json.loads((directory / f"{name}.json").read_text())
        expected = load_file(directory / f"{name}.expected.safetensors")
        weights = load_file(directory / f"{name}.weights.safetensors")
        precond = {"vp": VPPrecond, "edm": EDMPrecond}[spec["preconditioning"]]
        for layout in (torch.contiguous_format, torch.channels_last):
            net = load_public(from_config(spec["config"]), weights)
            net = precond(net).eval().to(memory_format=layout)
            with torch.no_grad():
                x = expected["x"].to(memory_format=layout)
                out = net(x, expected["sigma"], expected.get("class_labels"))
            want = expected["denoised_full"]
            # By sample: the largest noise level must not hide the others.
            error = (out - want).abs().amax(dim=(1, 2, 3))
            relative = (error / want.abs().amax(dim=(1, 2, 3))).max().item()
            worst = max(worst, relative)
            print(
                f"{name} {str(layout).removeprefix('torch.')}: "
                f"largest error {error.max().item():.2e}, "
                f"relative to its sample's largest value {relative:.2e}"
            )
    ok = worst <= tolerance
    print("ok" if ok else f"FAILED: above {tolerance:g}")
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check-goldens", type=Path, metavar="DIR", required=True)
    sys.exit(0 if check_goldens(parser.parse_args().check_goldens) else 1)


if __name__ == "__main__":
    main()

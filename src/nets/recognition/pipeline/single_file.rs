//! One file with all networks, under the names of CompVis/latent-diffusion.

use super::{Configs, Pipeline, Tensors, directory, refusal};
use crate::checkpoint::{Checkpoint, Part};
use crate::diffusion::preconditioning::Preconditioning;
use crate::nets::{unet, vae};
use crate::text::{self, TextConfig, Tokenizer};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// What stands before the names of each network: the U-Net, the autoencoder, the encoder of texts.
const PREFIXES: [&str; 3] = ["model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."];
/// What only files of other kinds have in a name, and what they seem to be.
const OTHERS: [(&str, &str); 5] = [
    ("conditioner.embedders.", "Stable Diffusion XL"),
    ("add_embedding.linear_1.", "Stable Diffusion XL"),
    ("cond_stage_model.model.", "Stable Diffusion 2"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("double_blocks.", "FLUX"),
];

/// What the names of tensors show the file to be, where that is another kind of pipeline.
fn seems(checkpoint: &Checkpoint) -> Option<&'static str> {
    let has = |text: &str| checkpoint.parts.iter().any(|part| part.tensors.names().any(|name| name.contains(text)));
    OTHERS.into_iter().find(|(text, _)| has(text)).map(|(_, kind)| kind)
}

/// Reads the pipeline in the file, where there is one.
///
/// # Errors
/// As [`super::open`].
pub fn open(checkpoint: &Checkpoint, config: Option<&Path>) -> Result<Option<Pipeline>> {
    let path = &checkpoint.path;
    if let Some(kind) = seems(checkpoint) {
        return Err(refusal(path, kind));
    }
    let [unet, vae, text_encoder] = PREFIXES;
    let has = |part: &&Part| part.tensors.names().any(|name| name.starts_with(unet));
    let Some(Part { tensors, .. }) = checkpoint.parts.iter().find(has) else { return Ok(None) };
    let under = |prefix: &str| match tensors.under(prefix) {
        tensors if tensors.is_empty() => {
            Err(Error::input(path.display(), format!("has a U-Net, but no tensor whose name begins with {prefix}")))
        }
        tensors => Ok(tensors),
    };
    let (unet, vae, text_encoder) = (under(unet)?, under(vae)?, under(text_encoder)?);
    let Some(config) = config else {
        let problem = "has no tokenizer, as no such file has: give --config with a directory in which tokenizer/ holds \
                       vocab.json and merges.txt, or tokenizer.json";
        return Err(Error::input(path.display(), problem));
    };
    let mut configs = directory::configs(config, Some(published()))?;
    // An inpainting network is published under the same config but for this.
    if let Some(&[_, channels, ..]) = unet.shape("input_blocks.0.0.weight") {
        configs.unet.in_channels = channels;
    }
    let (of_unet, of_vae) = (unet_names(&configs.unet), vae_names(&configs.vae));
    let tensors = Tensors {
        unet: unet.renamed(|name| renamed(name, &of_unet)),
        vae: vae::named_as_today(&vae.renamed(|name| renamed(name, &of_vae))),
        text_encoder: text::named_as_today(&text_encoder),
    };
    Ok(Some(Pipeline::new(path, configs, Tokenizer::open(config)?, tensors)))
}

/// The sizes of Stable Diffusion 1.x.
pub fn published() -> Configs {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    Configs {
        unet: unet::Config {
            in_channels: 4,
            out_channels: 4,
            sample_size: 64,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            down_block_types: names(&[
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "DownBlock2D",
            ]),
            up_block_types: names(&["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]),
            attention_head_dim: unet::Heads::Same(8),
            cross_attention_dim: 768,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            pipe_widths: BTreeMap::new(),
        },
        preconditioning: Preconditioning::STABLE_DIFFUSION,
        vae: vae::Config {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
        },
        text_encoder: TextConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_attention_heads: 12,
            ..TextConfig::default()
        },
    }
}

/// Beginnings of names, and those of diffusers.
type Names = Vec<(String, String)>;

/// The parts of a residual block.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// The names of a U-Net of this size, whose blocks are counted through.
fn unet_names(config: &unet::Config) -> Names {
    let mut names: Names = [
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
        ("middle_block.1", "mid_block.attentions.0"),
    ]
    .map(|(theirs, ours)| (theirs.to_owned(), ours.to_owned()))
    .into();
    let resnet = |names: &mut Names, theirs: String, ours: String| {
        names.extend(RESNET.map(|(from, to)| (format!("{theirs}.{from}"), format!("{ours}.{to}"))));
    };
    resnet(&mut names, "middle_block.0".into(), "mid_block.resnets.0".into());
    resnet(&mut names, "middle_block.2".into(), "mid_block.resnets.1".into());
    let last = config.block_out_channels.len() - 1;
    let attends = |kind: &str| kind.starts_with("CrossAttn");
    let mut index = 0;
    for (level, kind) in config.down_block_types.iter().enumerate() {
        for block in 0..config.layers_per_block {
            index += 1;
            resnet(&mut names, format!("input_blocks.{index}.0"), format!("down_blocks.{level}.resnets.{block}"));
            if attends(kind) {
                names.push((format!("input_blocks.{index}.1"), format!("down_blocks.{level}.attentions.{block}")));
            }
        }
        if level < last {
            index += 1;
            names.push((format!("input_blocks.{index}.0.op"), format!("down_blocks.{level}.downsamplers.0.conv")));
        }
    }
    let mut index = 0;
    for (level, kind) in config.up_block_types.iter().enumerate() {
        for block in 0..=config.layers_per_block {
            let theirs = format!("output_blocks.{index}");
            resnet(&mut names, format!("{theirs}.0"), format!("up_blocks.{level}.resnets.{block}"));
            let attends = attends(kind);
            if attends {
                names.push((format!("{theirs}.1"), format!("up_blocks.{level}.attentions.{block}")));
            }
            if block == config.layers_per_block && level < last {
                let after = 1 + usize::from(attends);
                names.push((format!("{theirs}.{after}.conv"), format!("up_blocks.{level}.upsamplers.0.conv")));
            }
            index += 1;
        }
    }
    names
}

/// The names of an autoencoder of this size, whose decoder's levels are counted from the last.
fn vae_names(config: &vae::Config) -> Names {
    let mut names = Names::new();
    let resnet = |names: &mut Names, theirs: String, ours: String| {
        for part in ["norm1", "conv1", "norm2", "conv2"] {
            names.push((format!("{theirs}.{part}"), format!("{ours}.{part}")));
        }
        names.push((format!("{theirs}.nin_shortcut"), format!("{ours}.conv_shortcut")));
    };
    let levels = config.block_out_channels.len();
    for level in 0..levels {
        for block in 0..config.layers_per_block {
            let (theirs, ours) =
                (format!("encoder.down.{level}.block"), format!("encoder.down_blocks.{level}.resnets"));
            resnet(&mut names, format!("{theirs}.{block}"), format!("{ours}.{block}"));
        }
        let ours = format!("encoder.down_blocks.{level}.downsamplers.0.conv");
        names.push((format!("encoder.down.{level}.downsample.conv"), ours));
        let theirs = levels - 1 - level;
        for block in 0..=config.layers_per_block {
            let ours = format!("decoder.up_blocks.{level}.resnets.{block}");
            resnet(&mut names, format!("decoder.up.{theirs}.block.{block}"), ours);
        }
        let ours = format!("decoder.up_blocks.{level}.upsamplers.0.conv");
        names.push((format!("decoder.up.{theirs}.upsample.conv"), ours));
    }
    for side in ["encoder", "decoder"] {
        for block in 0..2 {
            let theirs = format!("{side}.mid.block_{}", block + 1);
            resnet(&mut names, theirs, format!("{side}.mid_block.resnets.{block}"));
        }
        for (theirs, ours) in
            [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")]
        {
            names.push((format!("{side}.mid.attn_1.{theirs}"), format!("{side}.mid_block.attentions.0.{ours}")));
        }
        names.push((format!("{side}.norm_out"), format!("{side}.conv_norm_out")));
    }
    names
}

/// A name of theirs as ours; one that begins with none of `names` stays.
fn renamed(name: &str, names: &Names) -> String {
    let ours = names.iter().find_map(|(theirs, ours)| {
        let rest = name.strip_prefix(theirs).filter(|rest| rest.starts_with('.'))?;
        Some(format!("{ours}{rest}"))
    });
    ours.unwrap_or_else(|| name.to_owned())
}

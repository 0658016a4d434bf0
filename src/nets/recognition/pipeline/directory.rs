//! The directory layout of diffusers.

use super::{Configs, Pipeline, Tensors};
use crate::checkpoint::component;
use crate::diffusion::preconditioning::{Preconditioning, Predicts};
use crate::files::read_json;
use crate::nets::backbone::Architecture;
use crate::nets::{unet, vae};
use crate::text::{self, Tokenizer};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a directory holds; only pipelines have it.
const INDEX: &str = "model_index.json";
/// The pipelines of Stable Diffusion 1.x, whose networks are the same.
const ACCEPTED: [&str; 4] = [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
];
/// Other pipelines, by what stands in their class's name.
const OTHERS: [(&str, &str); 5] = [
    ("StableDiffusionXL", "Stable Diffusion XL"),
    ("StableDiffusion3", "Stable Diffusion 3"),
    ("Flux", "FLUX"),
    ("StableCascade", "Stable Cascade"),
    ("PixArt", "PixArt"),
];
/// That it is one that is not read.
const SD2: &str = "Stable Diffusion 2";

/// Whether the directory has a pipeline.
pub fn is_pipeline(dir: &Path) -> bool {
    dir.join(INDEX).is_file()
}

/// The class of the network that the directory has, where it is a part of a pipeline.
pub fn class_of_part(dir: &Path) -> Option<String> {
    let config: Map<String, Value> = read_json(&dir.join("config.json")).ok()?;
    config.get("_class_name")?.as_str().map(str::to_owned)
}

/// Reads the pipeline.
///
/// # Errors
/// As [`super::open`].
pub fn open(dir: &Path) -> Result<Pipeline> {
    check_class(&dir.join(INDEX))?;
    let part = |name: &str| match dir.join(name) {
        part if part.is_dir() => Ok(part),
        part => Err(Error::input(part.display(), "is missing, a part of the pipeline")),
    };
    let [unet, vae, text_encoder] = ["unet", "vae", "text_encoder"].map(part);
    let (unet, vae, text_encoder, tokenizer) = (unet?, vae?, text_encoder?, part("tokenizer")?);
    part("scheduler")?;
    let configs = configs(dir, None)?;
    let tensors = Tensors {
        unet: component(&unet)?,
        vae: vae::named_as_today(&component(&vae)?),
        text_encoder: text::named_as_today(&component(&text_encoder)?),
    };
    Ok(Pipeline::new(dir, configs, Tokenizer::open(&tokenizer)?, tensors))
}

/// The sizes that the config files of `dir` say; those of `usual`, where it is given, of networks that have none.
pub fn configs(dir: &Path, usual: Option<Configs>) -> Result<Configs> {
    let path = |part: &str, file: &str| {
        let path = dir.join(part).join(file);
        (usual.is_none() || path.is_file()).then_some(path)
    };
    let mut configs = usual.clone().unwrap_or_else(super::single_file::published);
    if let Some(path) = path("unet", "config.json") {
        configs.unet = unet_config(&path)?;
    }
    if let Some(path) = path("vae", "config.json") {
        configs.vae = config(&path, "AutoencoderKL", vae_fields())?;
        configs.vae.check().map_err(|error| error.in_file(&path))?;
    }
    if let Some(path) = path("text_encoder", "config.json") {
        configs.text_encoder = read_json(&path)?;
    }
    if let Some(path) = path("scheduler", "scheduler_config.json") {
        configs.preconditioning = preconditioning(&path)?;
    }
    Ok(configs)
}

/// Refuses pipelines of other kinds by their class.
fn check_class(path: &Path) -> Result<()> {
    let index: Map<String, Value> = read_json(path)?;
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or("of no class");
    if ACCEPTED.contains(&class) {
        return Ok(());
    }
    let known = OTHERS.into_iter().find(|(part, _)| class.contains(part));
    let seems = known.map_or_else(|| class.to_owned(), |(_, name)| format!("{name} ({class})"));
    Err(super::refusal(path, &seems))
}

fn unet_config(path: &Path) -> Result<unet::Config> {
    let json: Map<String, Value> = read_json(path)?;
    let is = |field: &str, value: Value| json.get(field) == Some(&value);
    // Its transformers are entered by linear layers, and its texts are of OpenCLIP.
    if is("use_linear_projection", json!(true)) && json.get("addition_embed_type").is_none_or(Value::is_null) {
        return Err(super::refusal(path, SD2));
    }
    if is("addition_embed_type", json!("text_time")) {
        return Err(super::refusal(path, "Stable Diffusion XL"));
    }
    let config: unet::Config = config(path, "UNet2DConditionModel", unet_fields())?;
    config.check().map_err(|error| error.in_file(path))?;
    Ok(config)
}

/// What a U-Net's config may say otherwise, and what it must say where it says it.
fn unet_fields() -> Vec<(&'static str, Value)> {
    vec![
        ("act_fn", json!("silu")),
        ("center_input_sample", json!(false)),
        ("class_embed_type", json!(null)),
        ("conv_in_kernel", json!(3)),
        ("conv_out_kernel", json!(3)),
        ("downsample_padding", json!(1)),
        ("dual_cross_attention", json!(false)),
        ("encoder_hid_dim", json!(null)),
        ("flip_sin_to_cos", json!(true)),
        ("freq_shift", json!(0)),
        ("mid_block_scale_factor", json!(1)),
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
        ("num_attention_heads", json!(null)),
        ("num_class_embeds", json!(null)),
        ("only_cross_attention", json!(false)),
        ("resnet_skip_time_act", json!(false)),
        ("resnet_time_scale_shift", json!("default")),
        ("time_cond_proj_dim", json!(null)),
        ("time_embedding_type", json!("positional")),
        ("transformer_layers_per_block", json!(1)),
    ]
}

fn vae_fields() -> Vec<(&'static str, Value)> {
    vec![
        ("act_fn", json!("silu")),
        ("latents_mean", json!(null)),
        ("mid_block_add_attention", json!(true)),
        ("shift_factor", json!(null)),
        ("use_post_quant_conv", json!(true)),
        ("use_quant_conv", json!(true)),
    ]
}

/// The config of a network of this class, whose `fixed` fields have these values where they are there.
fn config<T: serde::de::DeserializeOwned>(path: &Path, class: &str, fixed: Vec<(&str, Value)>) -> Result<T> {
    let json: Map<String, Value> = read_json(path)?;
    match json.get("_class_name").and_then(Value::as_str) {
        Some(found) if found != class => {
            return Err(Error::field(path, "_class_name", format!("{found} is not {class}")));
        }
        _ => {}
    }
    check_fields(path, &json, fixed)?;
    read_json(path)
}

fn check_fields(path: &Path, json: &Map<String, Value>, fixed: Vec<(&str, Value)>) -> Result<()> {
    // 1 and 1.0 are the same.
    let same = |a: &Value, b: &Value| a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64());
    for (field, wanted) in fixed {
        if let Some(value) = json.get(field).filter(|value| !same(value, &wanted)) {
            return Err(Error::field(path, field, format!("{value} is not {wanted}, as Stable Diffusion 1.x has it")));
        }
    }
    Ok(())
}

/// What is read of a scheduler's config: how the network was trained, not by which solver it shall be run.
#[derive(Deserialize)]
struct Scheduler {
    #[serde(default = "beta_start")]
    beta_start: f64,
    #[serde(default = "beta_end")]
    beta_end: f64,
    #[serde(default = "steps")]
    num_train_timesteps: usize,
    #[serde(default)]
    prediction_type: Predicts,
}

// Those of diffusers' classes.
fn beta_start() -> f64 {
    0.0001
}

fn beta_end() -> f64 {
    0.02
}

fn steps() -> usize {
    1000
}

fn preconditioning(path: &Path) -> Result<Preconditioning> {
    let json: Map<String, Value> = read_json(path)?;
    let fixed = vec![("rescale_betas_zero_snr", json!(false)), ("trained_betas", json!(null))];
    check_fields(path, &json, fixed)?;
    let schedule = json.get("beta_schedule").unwrap_or(&Value::Null);
    if *schedule != "scaled_linear" {
        return Err(Error::field(path, "beta_schedule", format!("{schedule} is not \"scaled_linear\"")));
    }
    let predicts = json.get("prediction_type").unwrap_or(&Value::Null);
    if !matches!(predicts.as_str(), None | Some("epsilon" | "v_prediction")) {
        return Err(Error::field(
            path,
            "prediction_type",
            format!("{predicts} is neither \"epsilon\" nor \"v_prediction\""),
        ));
    }
    let Scheduler { beta_start, beta_end, num_train_timesteps: steps, prediction_type: predicts } = read_json(path)?;
    let refuse = |field: &str, problem: String| Err(Error::field(path, field, problem));
    if !(beta_start > 0.0 && beta_start <= beta_end && beta_end < 1.0) {
        return refuse("beta_start", format!("{beta_start} to {beta_end} is not a range between 0 and 1"));
    }
    if !(2..=10_000).contains(&steps) {
        return refuse("num_train_timesteps", format!("{steps} is not from 2 to 10000"));
    }
    Ok(Preconditioning::Ddpm { beta_start, beta_end, steps, predicts })
}

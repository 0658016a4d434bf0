//! A model as a pipeline in the directory layout of diffusers, which `StableDiffusionPipeline.from_pretrained` loads.

use super::backbone::Backbone;
use super::text_to_image::{TEXT_ENCODER, TextToImage, VAE, tensors};
use super::{Decoder, Model, public};
use crate::diffusion::preconditioning::Preconditioning;
use crate::files::write_whole;
use crate::text::{TextConfig, Tokenizer};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Writes the directory: the channels of the U-Net and of the decoder at full width, in their original order, all weights in f32.
///
/// # Errors
/// [`Error::Input`] for a model that is no such pipeline, or has narrower pipes, for which diffusers has no config; [`Error::Io`] if a
/// file cannot be read or written.
pub fn write(model: &Model, dir: &Path) -> Result<()> {
    let refuse = |problem: &str| Error::input("--format", problem);
    let (Backbone::Unet(unet), Some(parts), Some(from)) =
        (&model.card.backbone, &model.card.text_to_image, model.parts())
    else {
        return Err(refuse("diffusers is of models that draw texts, which this one does not"));
    };
    if !unet.pipe_widths.is_empty() {
        return Err(refuse("diffusers knows no narrower networks: give --subnet full, or another format"));
    }
    let made = |path: &Path| std::fs::create_dir_all(path).map_err(Error::io(path));
    let part = |name: &str| {
        let path = dir.join(name);
        made(&path).map(|()| path)
    };
    let inpaints = unet.in_channels > unet.out_channels;
    json_file(&dir.join("model_index.json"), &index(inpaints))?;

    let path = part("unet")?;
    let mut config = serde_json::to_value(unet).expect("options are plain data");
    extend(&mut config, json!({ "_class_name": "UNet2DConditionModel" }));
    json_file(&path.join("config.json"), &config)?;
    public::write(model, &path.join("diffusion_pytorch_model.safetensors"))?;

    let path = part("vae")?;
    json_file(&path.join("config.json"), &vae_config(parts))?;
    let vae = tensors(&from.join(VAE))?;
    let vae = match model.decoder_table() {
        Some(_) => vae.with_values(Decoder::wanted(model)?.in_original_order()?),
        None => vae,
    };
    vae.write(&path.join("diffusion_pytorch_model.safetensors"), "")?;

    let path = part("text_encoder")?;
    json_file(&path.join("config.json"), &text_config(&parts.text_encoder))?;
    // As published, so that every transformers reads it.
    tensors(&from.join(TEXT_ENCODER))?.write(&path.join("model.safetensors"), "text_model.")?;

    let path = part("tokenizer")?;
    Tokenizer::open(from)?.write_as_published(&path)?;
    json_file(&path.join("tokenizer_config.json"), &tokenizer_config(&parts.text_encoder))?;
    json_file(&path.join("special_tokens_map.json"), &special_tokens())?;

    json_file(&part("scheduler")?.join("scheduler_config.json"), &scheduler(model.card.preconditioning))
}

fn json_file(path: &Path, value: &Value) -> Result<()> {
    write_whole(path, format!("{value:#}\n").as_bytes())
}

/// The fields of `more`, added to an object.
fn extend(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

fn index(inpaints: bool) -> Value {
    let class = if inpaints { "StableDiffusionInpaintPipeline" } else { "StableDiffusionPipeline" };
    json!({
        "_class_name": class,
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

fn vae_config(parts: &TextToImage) -> Value {
    let mut config = serde_json::to_value(&parts.vae).expect("options are plain data");
    let levels = parts.vae.block_out_channels.len();
    let size = parts.sizes[0];
    extend(
        &mut config,
        json!({
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "down_block_types": vec!["DownEncoderBlock2D"; levels],
            "up_block_types": vec!["UpDecoderBlock2D"; levels],
            "sample_size": size.width.max(size.height),
        }),
    );
    config
}

fn text_config(config: &TextConfig) -> Value {
    let mut json = serde_json::to_value(config).expect("options are plain data");
    // The ids are those of the published file, which are not the tokenizer's and which nobody reads.
    extend(
        &mut json,
        json!({
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "projection_dim": config.hidden_size,
        }),
    );
    json
}

/// A token that is found in the text as it is.
fn added(content: &str) -> Value {
    json!({ "__type": "AddedToken", "content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false })
}

fn tokenizer_config(config: &TextConfig) -> Value {
    let [start, end] = Tokenizer::SPECIAL;
    json!({
        "tokenizer_class": "CLIPTokenizer",
        "add_prefix_space": false,
        "do_lower_case": true,
        "errors": "replace",
        "model_max_length": config.max_position_embeddings,
        "bos_token": added(start),
        "eos_token": added(end),
        "unk_token": added(end),
        "pad_token": end,
    })
}

fn special_tokens() -> Value {
    let [start, end] = Tokenizer::SPECIAL;
    json!({ "bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end })
}

/// That of Stable Diffusion 1.5, with the betas that the network was trained with.
fn scheduler(preconditioning: Preconditioning) -> Value {
    let mut config = json!({
        "_class_name": "PNDMScheduler",
        "beta_schedule": "scaled_linear",
        "clip_sample": false,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
    });
    if let Preconditioning::Ddpm { beta_start, beta_end, steps, predicts } = preconditioning {
        let betas = json!({ "beta_start": beta_start, "beta_end": beta_end, "num_train_timesteps": steps });
        extend(&mut config, betas);
        extend(&mut config, json!({ "prediction_type": predicts }));
    }
    config
}

//! `config.json` of a CLIP. What it leaves out is as in transformers, which does not write what is as it always is.

use crate::files::read_json;
use crate::text::config::{Act, Layers, Text};
use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// The most rows and columns of an image that an encoder takes.
const MOST_PIXELS: usize = 4096;

/// What is read of the file, in its words.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Config {
    #[serde(rename = "text_config")]
    pub text: Text,
    #[serde(rename = "vision_config")]
    pub vision: Vision,
    /// Features of an image and of a text.
    #[serde(default = "projection_dim")]
    pub projection_dim: usize,
}

fn projection_dim() -> usize {
    512
}

/// The encoder of images.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
pub struct Vision {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub hidden_act: Act,
    pub layer_norm_eps: f64,
    pub num_channels: usize,
    /// Rows and columns of an image.
    pub image_size: usize,
    /// Rows and columns of a patch; what is left of an image is not read.
    pub patch_size: usize,
}

impl Default for Vision {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            hidden_act: Act::QuickGelu,
            layer_norm_eps: 1e-5,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
        }
    }
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// One sentence with the field that is not as in any CLIP; [`Error::Io`] if the file cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let config: Self = read_json(path)?;
        config.check().map_err(|(field, problem)| Error::field(path, field, problem))?;
        Ok(config)
    }

    /// Says which field does not fit, and why. Sizes that weights have are compared with them.
    fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        let Self { text, vision, .. } = self;
        let towers = [("text_config", text.layers()), ("vision_config", vision.layers())];
        for (field, layers) in towers {
            layers.check().map_err(|problem| (field, problem))?;
        }
        if text.max_position_embeddings < 2 {
            return Err(("text_config.max_position_embeddings", "is below 2, a start and an end".into()));
        }
        if vision.num_channels != 3 {
            return Err(("vision_config.num_channels", format!("is {}, but only 3 is accepted", vision.num_channels)));
        }
        if !(1..=MOST_PIXELS).contains(&vision.image_size) {
            let problem = format!("is {}, but only 1 to {MOST_PIXELS} is accepted", vision.image_size);
            return Err(("vision_config.image_size", problem));
        }
        if !(1..=vision.image_size).contains(&vision.patch_size) {
            let problem = format!("is {}, but an image has {} pixels", vision.patch_size, vision.image_size);
            return Err(("vision_config.patch_size", problem));
        }
        Ok(())
    }
}

impl Vision {
    /// The size of its transformer.
    pub fn layers(&self) -> Layers {
        Layers {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        }
    }
}

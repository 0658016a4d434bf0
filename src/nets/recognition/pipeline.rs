//! Pipelines of Stable Diffusion 1.x as they are published: a directory of diffusers, or one file with all networks.

mod directory;
mod single_file;

use crate::checkpoint::lora::{Lora, Merged, Prefixes};
use crate::checkpoint::{self, StateDict};
use crate::diffusion::preconditioning::Preconditioning;
use crate::nets::Network;
use crate::nets::backbone::Backbone;
use crate::nets::model::{Card, Model};
use crate::nets::text_to_image::{TEXT_ENCODER, TOKENIZER, TextToImage, VAE};
use crate::nets::{public, unet, vae};
use crate::supernet::Supernet;
use crate::text::{TextConfig, TextEncoder, Tokenizer};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// That a U-Net is no model by itself.
pub const ALONE: &str = "is the U-Net of a Stable Diffusion pipeline alone, which draws nothing by itself: give the pipeline's \
                         directory (with model_index.json) or a file with all of its networks";

/// A pipeline that was found.
#[derive(Debug)]
pub struct Pipeline {
    path: PathBuf,
    /// The denoiser.
    pub unet: unet::Config,
    /// How it was trained to see noise.
    pub preconditioning: Preconditioning,
    /// The autoencoder.
    pub vae: vae::Config,
    /// The encoder of texts.
    pub text_encoder: TextConfig,
    tokenizer: Tokenizer,
    /// Under the names of diffusers and transformers today.
    tensors: Tensors,
    /// What was added to them.
    loras: Vec<Merged>,
}

/// The tensors of each network.
#[derive(Debug)]
struct Tensors {
    unet: StateDict,
    vae: StateDict,
    text_encoder: StateDict,
}

/// The sizes of the networks.
#[derive(Clone, Debug)]
struct Configs {
    unet: unet::Config,
    preconditioning: Preconditioning,
    vae: vae::Config,
    text_encoder: TextConfig,
}

/// The pipeline in the directory or the file `path`; None where there is no part of one. Of a file, `config` is a directory in the
/// layout of diffusers that says what the file does not: the tokenizer, and sizes that are not those of Stable Diffusion 1.5.
///
/// # Errors
/// [`Error::Input`] with what it seems to be, where it is another kind of pipeline; with the part that is missing or does not fit.
pub fn open(path: &Path, config: Option<&Path>) -> Result<Option<Pipeline>> {
    if directory::is_pipeline(path) {
        return directory::open(path).map(Some);
    }
    if let Some(class) = directory::class_of_part(path) {
        let problem =
            format!("is one network of a pipeline, {class}: give the pipeline's directory, which has model_index.json");
        return Err(Error::input(path.display(), problem));
    }
    // A directory with one file is that file.
    if path.is_dir() && config.is_none_or(Path::is_file) {
        return Ok(None);
    }
    let checkpoint = checkpoint::open(path)?;
    single_file::open(&checkpoint, config)
}

impl Pipeline {
    fn new(path: &Path, configs: Configs, tokenizer: Tokenizer, tensors: Tensors) -> Self {
        let Configs { unet, preconditioning, vae, text_encoder } = configs;
        Self { path: path.to_owned(), unet, preconditioning, vae, text_encoder, tokenizer, tensors, loras: Vec::new() }
    }

    /// The same with a LoRA added to its U-Net and its encoder of texts.
    ///
    /// # Errors
    /// As [`Lora::merge`].
    pub fn with(self, lora: &Lora) -> Result<Self> {
        let Tensors { unet, vae, text_encoder } = self.tensors;
        let parts = [(&Prefixes::UNET, unet), (&Prefixes::TEXT_ENCODER, text_encoder)];
        let [unet, text_encoder] = lora.merge(parts)?;
        let loras = self.loras.into_iter().chain([lora.merged()?]).collect();
        Ok(Self { tensors: Tensors { unet, vae, text_encoder }, loras, ..self })
    }

    /// The model, named `name`, whose other parts are written to `dir`, an empty directory, for it to be written to as well.
    ///
    /// # Errors
    /// [`Error::Input`] with what is missing, of another shape or does not fit; [`Error::Io`] if a file cannot be written.
    pub fn into_model(self, name: String, dir: &Path) -> Result<Model> {
        let Self { path, unet, preconditioning, vae, text_encoder, tokenizer, tensors, loras } = self;
        let backbone = Backbone::Unet(unet);
        let network = Network::new(&backbone, preconditioning).map_err(|error| error.in_table(&path, "unet."))?;
        let parts = TextToImage::new(&backbone, text_encoder, vae).map_err(|error| error.in_file(&path))?;
        let params = public::read(network.spec(), &tensors.unet)?;
        // Both say what is missing.
        let encoder = TextEncoder::new(&tensors.text_encoder, text_encoder)?;
        encoder.check_reads(&tokenizer)?;
        parts.vae.check_tensors(&tensors.vae)?;
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        tensors.text_encoder.write(&dir.join(TEXT_ENCODER), "")?;
        tensors.vae.write(&dir.join(VAE), "")?;
        tokenizer.write(&dir.join(TOKENIZER))?;
        let mut card = Card { text_to_image: Some(parts), ..Card::new(name, backbone, preconditioning, vec![]) };
        if !loras.is_empty() {
            let loras = toml::Value::try_from(loras).expect("names and numbers");
            card.made.insert("lora".to_owned(), loras);
        }
        let supernet = Supernet::original(network.spec(), params);
        Ok(Model::unallocated(card, supernet)?.with_parts_in(dir))
    }
}

/// That `path` is a pipeline of another kind.
fn refusal(path: &Path, seems: &str) -> Error {
    Error::input(path.display(), format!("seems to be {seems}; pipelines of Stable Diffusion 1.x are read"))
}

impl std::fmt::Display for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let widths: Vec<String> = self.unet.block_out_channels.iter().map(ToString::to_string).collect();
        let kind = if self.unet.in_channels > self.unet.out_channels { ", for inpainting" } else { "" };
        write!(
            f,
            "{}: a Stable Diffusion pipeline{kind}: a U-Net of {} channels, texts of {}",
            self.path.display(),
            widths.join(", "),
            self.text_encoder.hidden_size
        )
    }
}

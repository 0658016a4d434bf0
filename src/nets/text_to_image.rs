//! What a model that draws texts has beside its denoiser: an encoder of texts, and an autoencoder between latents and pictures.

use super::backbone::Backbone;
use super::host_runner::Threads;
use super::program::Program;
use super::unet::TOKENS;
use super::{Runner, public, vae};
use crate::checkpoint::{self, StateDict};
use crate::supernet::Supernet;
use crate::text::{TextConfig, TextEncoder, Tokenizer};
use crate::{Error, Result, Size};
use candle_core::Var;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// The usual scale of guidance towards a prompt, which is that of diffusers' pipelines.
pub const GUIDANCE: f64 = 7.5;
/// The weights of the encoder of texts, under the names of transformers.
pub const TEXT_ENCODER: &str = "text_encoder.safetensors";
/// What makes token ids of prompts.
pub const TOKENIZER: &str = "tokenizer.json";
/// The weights of the autoencoder, under the names of diffusers.
pub const VAE: &str = "vae.safetensors";
/// The files of a model directory that these parts are in.
pub const FILES: [&str; 3] = [TEXT_ENCODER, TOKENIZER, VAE];
/// The weights of the decoder in order of importance, once it is ranked: in place of those in [`VAE`].
pub const DECODER: &str = "decoder.safetensors";
/// Its subnets.
pub const DECODER_SUBNETS: &str = "decoder_subnets.toml";
/// The importance of its channels, by original channel.
pub const DECODER_IMPORTANCE: &str = "decoder_importance.safetensors";
/// The files of a decoder that is ranked.
pub const DECODER_FILES: [&str; 3] = [DECODER, DECODER_SUBNETS, DECODER_IMPORTANCE];

/// `[text_to_image]` of `model.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextToImage {
    /// The sizes of pictures that it draws, the usual one first.
    pub sizes: Vec<Size>,
    /// The encoder of texts.
    pub text_encoder: TextConfig,
    /// The autoencoder.
    pub vae: vae::Config,
}

impl TextToImage {
    /// The most sizes that a model offers, and the most rows or columns of one.
    const MOST: [usize; 2] = [64, 4096];

    /// Parts for a denoiser, which draw pictures of the size that it was trained on.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn new(backbone: &Backbone, text_encoder: TextConfig, vae: vae::Config) -> Result<Self> {
        vae.check().map_err(|error| error.within("text_to_image.vae."))?;
        let latent = backbone.image();
        let size = Size { width: latent.width * vae.factor(), height: latent.height * vae.factor() };
        let parts = Self { sizes: vec![size], text_encoder, vae };
        parts.check(backbone)?;
        Ok(parts)
    }

    /// Checks that the parts fit each other.
    ///
    /// # Errors
    /// [`Error::Input`] with the field that does not fit.
    pub fn check(&self, backbone: &Backbone) -> Result<()> {
        let refuse = |field: &str, problem: String| Err(Error::input(field, problem));
        let Backbone::Unet(unet) = backbone else {
            return refuse("backbone.arch", format!("{} reads no text, but unet does", backbone.arch()));
        };
        self.vae.check().map_err(|error| error.within("text_to_image.vae."))?;
        let (latent, channels) = (self.vae.latent_channels, unet.out_channels);
        if latent != channels {
            return refuse(
                "text_to_image.vae.latent_channels",
                format!("{latent} are not the {channels} channels of the U-Net"),
            );
        }
        if unet.in_channels != channels && unet.in_channels != 2 * channels + 1 {
            let problem = format!(
                "{} are neither the {channels} channels of a latent nor, for inpainting, those of two and a mask",
                unet.in_channels
            );
            return refuse("backbone.in_channels", problem);
        }
        let TextConfig { hidden_size, max_position_embeddings: tokens, .. } = self.text_encoder;
        if hidden_size != unet.cross_attention_dim {
            let problem =
                format!("{hidden_size} are not the {} channels that the U-Net reads", unet.cross_attention_dim);
            return refuse("text_to_image.text_encoder.hidden_size", problem);
        }
        if tokens != TOKENS {
            return refuse("text_to_image.text_encoder.max_position_embeddings", format!("{tokens} is not {TOKENS}"));
        }
        let [most_sizes, most_pixels] = Self::MOST;
        if !(1..=most_sizes).contains(&self.sizes.len()) {
            return refuse(
                "text_to_image.sizes",
                format!("has {} sizes, but 1 to {most_sizes} are accepted", self.sizes.len()),
            );
        }
        let step = self.vae.factor() * unet.factor();
        let fits = |side: usize| (step..=most_pixels).contains(&side) && side.is_multiple_of(step);
        match self.sizes.iter().find(|size| !fits(size.width) || !fits(size.height)) {
            Some(size) => {
                refuse("text_to_image.sizes", format!("{size} is not of multiples of {step} up to {most_pixels}"))
            }
            None => Ok(()),
        }
    }

    /// From pictures to the means and logarithms of variances of their latents, with the weights in `dir`.
    ///
    /// # Errors
    /// [`Error::Input`] with the tensor that is missing or does not fit; [`Error::Io`] if the file cannot be read.
    pub fn encoder(&self, dir: &Path, threads: Threads) -> Result<Runner> {
        let (program, weights) = self.encoder_network(dir)?;
        Runner::new(Arc::new(program), &weights, threads)
    }

    /// The network of that and its weights.
    ///
    /// # Errors
    /// As [`Self::encoder`].
    pub fn encoder_network(&self, dir: &Path) -> Result<(Program, Supernet)> {
        let Size { height, width } = self.sizes[0];
        let program = self.vae.encoder(height, width);
        // Passing over those of the decoder.
        let params = public::read_among(&program.spec, &tensors(&dir.join(VAE))?)?;
        let weights = Supernet::original(&program.spec, params);
        Ok((program, weights))
    }

    /// Rows and columns of the latent of a picture of this size.
    pub fn latent_size(&self, size: Size) -> [usize; 2] {
        [size.height, size.width].map(|side| side / self.vae.factor())
    }

    /// The encoder of texts and its tokenizer, in the files of `dir`.
    ///
    /// # Errors
    /// [`Error::Input`] with the file that is missing or does not fit; [`Error::Io`] if one cannot be read.
    pub fn texts(&self, dir: &Path) -> Result<(TextEncoder, Tokenizer)> {
        let encoder = TextEncoder::new(&tensors(&dir.join(TEXT_ENCODER))?, self.text_encoder)?;
        let tokenizer = Tokenizer::open(dir)?;
        encoder.check_reads(&tokenizer)?;
        Ok((encoder, tokenizer))
    }

    /// The same on weights that gradients are wanted of.
    ///
    /// # Errors
    /// As [`Self::texts`].
    pub fn trainable_texts(&self, dir: &Path) -> Result<TrainableTexts> {
        let (encoder, weights) = TextEncoder::trainable(&tensors(&dir.join(TEXT_ENCODER))?, self.text_encoder)?;
        let tokenizer = Tokenizer::open(dir)?;
        encoder.check_reads(&tokenizer)?;
        Ok((encoder, weights, tokenizer))
    }
}

/// An encoder of texts whose weights gradients are wanted of, those by name, and its tokenizer.
pub type TrainableTexts = (TextEncoder, Vec<(String, Var)>, Tokenizer);

/// The tensors of a file of a model directory.
pub(super) fn tensors(path: &Path) -> Result<StateDict> {
    Ok(checkpoint::open(path)?.parts.swap_remove(0).tensors)
}

//! From latents to pictures.

use super::host_runner::Threads;
use super::preview::Preview;
use super::{Model, Runner};
use crate::ImageShape;
use crate::ops::cpu::fused::Layer;
use crate::ops::pixels::byte;
use crate::{Error, Result};

/// The decoder of a model that draws latents, on the CPU, for all sizes of pictures.
#[derive(Debug)]
pub struct Decoder {
    runner: Runner,
    /// What latents are divided by.
    scale: f64,
    preview: Preview,
}

impl Decoder {
    /// That of a model; None where the model draws pictures itself.
    ///
    /// # Errors
    /// [`Error::Input`] if its weights are missing or do not fit; [`Error::Io`] if they cannot be read.
    pub fn of(model: &Model, threads: Threads) -> Result<Option<Self>> {
        let (Some(parts), Some(dir)) = (&model.card.text_to_image, model.parts()) else { return Ok(None) };
        let (vae, mut runner) = (&parts.vae, parts.decoder(dir, threads)?);
        let preview = Preview::fit(vae, |latent| Ok(runner.run_sized(Preview::fitted_on(vae), latent)))?;
        Ok(Some(Self { runner, scale: vae.scaling_factor, preview }))
    }

    /// Memory that its weights take.
    pub fn weight_bytes(&self) -> usize {
        self.runner.weight_bytes()
    }

    /// Memory in the buffers of activations.
    pub fn activation_bytes(&self) -> usize {
        self.runner.activation_bytes()
    }

    /// The picture of a latent of this size, `[height, width, channels]` in the units of the denoiser, as bytes.
    ///
    /// # Errors
    /// [`Error::Denoiser`] where it is not finite.
    pub fn pixels(&mut self, size: ImageShape, latent: &[f64]) -> Result<Vec<u8>> {
        let values: Vec<f32> = latent.iter().map(|value| (value / self.scale) as f32).collect();
        let picture = self.runner.run_sized(size, &values);
        match picture.iter().all(|value| value.is_finite()) {
            true => Ok(picture.iter().map(|&value| byte(f64::from(value))).collect()),
            false => Err(not_finite()),
        }
    }

    /// What the layers of decoding a latent of this size take, in the order in which they run.
    pub fn layers(&mut self, size: ImageShape) -> Vec<Layer> {
        let latent = vec![0.5; size.elements()];
        self.runner.with_layers(|runner| runner.run_sized(size, &latent)).1
    }

    /// About what the picture of a latent looks like.
    pub fn preview(&self) -> &Preview {
        &self.preview
    }
}

/// What is wrong with a picture that is no numbers.
pub(super) fn not_finite() -> Error {
    Error::Denoiser("the decoder made values that are not finite".to_owned())
}

//! Between pictures and latents.

use super::host_runner::Threads;
use super::preview::Preview;
use super::vae::bounded;
use super::{Decoder, Model, Runner};
use crate::ImageShape;
use crate::ops::cpu::fused::Layer;
use crate::ops::pixels::byte;
use crate::{Error, Result};

/// The encoder of a model that draws latents, on the CPU, for all sizes of pictures.
#[derive(Debug)]
pub struct Encoder {
    runner: Runner,
    /// What latents are multiplied with.
    scale: f64,
}

impl Encoder {
    /// That of a model; None where the model draws pictures itself.
    ///
    /// # Errors
    /// As [`Codec::of`].
    pub fn of(model: &Model, threads: Threads) -> Result<Option<Self>> {
        let (Some(parts), Some(dir)) = (&model.card.text_to_image, model.parts()) else { return Ok(None) };
        Ok(Some(Self { runner: parts.encoder(dir, threads)?, scale: parts.vae.scaling_factor }))
    }

    /// The latent of a picture of this size, `[height, width, channels]` in [-1, 1], in the units of the denoiser: the mean of what the
    /// encoder makes of it.
    ///
    /// # Errors
    /// [`Error::Denoiser`] where it is not finite.
    pub fn latent(&mut self, size: ImageShape, picture: &[f32]) -> Result<Vec<f32>> {
        means(&self.runner.run_sized(size, picture), self.channels(), self.scale)
    }

    /// The distribution of that latent: by pixel the means, then the standard deviations.
    ///
    /// # Errors
    /// As [`Self::latent`].
    pub fn moments(&mut self, size: ImageShape, picture: &[f32]) -> Result<Vec<f32>> {
        let (channels, scale) = (self.channels(), self.scale as f32);
        let mut output = self.runner.run_sized(size, picture);
        for pixel in output.chunks_exact_mut(channels) {
            let (means, logarithms) = pixel.split_at_mut(channels / 2);
            means.iter_mut().for_each(|mean| *mean *= scale);
            logarithms.iter_mut().for_each(|value| *value = scale * (0.5 * bounded(*value)).exp());
        }
        match output.iter().all(|value| value.is_finite()) {
            true => Ok(output),
            false => Err(encoder_not_finite()),
        }
    }

    /// Of what it makes of a pixel.
    fn channels(&self) -> usize {
        self.runner.program().output_channels()
    }
}

/// The autoencoder of a model that draws latents, on the CPU, for all sizes of pictures.
#[derive(Debug)]
pub struct Codec {
    encoder: Encoder,
    /// At all of its widths.
    decoder: Runner,
    /// What latents are multiplied with, and divided by before they are decoded.
    scale: f64,
    preview: Preview,
}

impl Codec {
    /// That of a model; None where the model draws pictures itself.
    ///
    /// # Errors
    /// [`Error::Input`] if its weights are missing or do not fit; [`Error::Io`] if they cannot be read.
    pub fn of(model: &Model, threads: Threads) -> Result<Option<Self>> {
        let Some(parts) = &model.card.text_to_image else { return Ok(None) };
        let (Some(encoder), Some(decoder)) = (Encoder::of(model, threads)?, Decoder::of(model)?) else {
            return Ok(None);
        };
        let mut decoder = decoder.runner(threads)?;
        let vae = &parts.vae;
        let preview = Preview::fit(vae, |latent| Ok(decoder.run_sized(Preview::fitted_on(vae), latent)))?;
        Ok(Some(Self { encoder, decoder, scale: vae.scaling_factor, preview }))
    }

    /// Memory that the decoder's weights take.
    pub fn decoder_weight_bytes(&self) -> usize {
        self.decoder.weight_bytes()
    }

    /// Memory in the buffers of activations.
    pub fn activation_bytes(&self) -> usize {
        self.encoder.runner.activation_bytes() + self.decoder.activation_bytes()
    }

    /// As [`Encoder::latent`].
    ///
    /// # Errors
    /// As that.
    pub fn latent(&mut self, size: ImageShape, picture: &[f32]) -> Result<Vec<f32>> {
        self.encoder.latent(size, picture)
    }

    /// The picture of a latent of this size, `[height, width, channels]` in the units of the denoiser, as bytes, by the subnet of the
    /// decoder of this index.
    ///
    /// # Errors
    /// [`Error::Denoiser`] where it is not finite.
    pub fn pixels(&mut self, decoder: usize, size: ImageShape, latent: &[f64]) -> Result<Vec<u8>> {
        let values: Vec<f32> = latent.iter().map(|value| (value / self.scale) as f32).collect();
        let picture = self.decoder.run_subnet(decoder, size, &values);
        match picture.iter().all(|value| value.is_finite()) {
            true => Ok(picture.iter().map(|&value| byte(f64::from(value))).collect()),
            false => Err(not_finite()),
        }
    }

    /// What the layers of decoding a latent of this size by a subnet take, in the order in which they run.
    pub fn layers(&mut self, decoder: usize, size: ImageShape) -> Vec<Layer> {
        let latent = vec![0.5; size.elements()];
        self.decoder.with_layers(|runner| runner.run_subnet(decoder, size, &latent)).1
    }

    /// About what the picture of a latent looks like.
    pub fn preview(&self) -> &Preview {
        &self.preview
    }
}

/// The latent, `scale` times the means, of an encoder's output: by pixel so many `channels`, the means and the logarithms of variances.
///
/// # Errors
/// [`Error::Denoiser`] where it is not finite.
pub(super) fn means(output: &[f32], channels: usize, scale: f64) -> Result<Vec<f32>> {
    let of_pixel =
        |pixel: &[f32]| pixel[..channels / 2].iter().map(|&mean| (f64::from(mean) * scale) as f32).collect::<Vec<_>>();
    let latent: Vec<f32> = output.chunks_exact(channels).flat_map(of_pixel).collect();
    match latent.iter().all(|value| value.is_finite()) {
        true => Ok(latent),
        false => Err(encoder_not_finite()),
    }
}

fn encoder_not_finite() -> Error {
    Error::Denoiser("the encoder made values that are not finite".to_owned())
}

/// What is wrong with a picture that is no numbers.
pub(super) fn not_finite() -> Error {
    Error::Denoiser("the decoder made values that are not finite".to_owned())
}

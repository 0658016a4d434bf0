//! The latents that a decoder is shown.

use crate::nets::vae::bounded;
use crate::nets::{Model, Runner, Threads};
use crate::ops::pixels::to_unit;
use crate::philox::Stream;
use crate::training::data::Dataset;
use crate::{Error, ImageShape, Result};

/// Pictures and an encoder, which makes latents of them.
///
/// A latent is drawn from the distribution that the encoder says, as it was when the autoencoder was trained (Rombach et al. 2022),
/// rather than its mean: what a denoiser leaves is as little without noise.
pub struct Latents<'a> {
    pictures: &'a Dataset,
    encoder: Runner,
    latent: ImageShape,
}

impl<'a> Latents<'a> {
    /// Those of the encoder of a model.
    ///
    /// # Errors
    /// [`Error::Input`] for a model that draws pictures itself, or pictures that its encoder does not take.
    pub fn new(model: &Model, pictures: &'a Dataset) -> Result<Self> {
        let none = || Error::input("--model", "draws pictures itself: it has no decoder");
        let vae = &model.card.text_to_image.as_ref().ok_or_else(none)?.vae;
        let latent = vae.latent_of(pictures.shape)?;
        let encoder = model.encoder(Threads::ALL)?.ok_or_else(none)?;
        Ok(Self { pictures, encoder, latent })
    }

    /// The size of each.
    pub fn shape(&self) -> ImageShape {
        self.latent
    }

    /// The pictures that they are of.
    pub fn pictures(&self) -> &'a Dataset {
        self.pictures
    }

    /// The picture of this index, `[height, width, channels]` in [-1, 1].
    pub fn picture(&self, index: usize) -> Vec<f32> {
        self.pictures.image(index).iter().copied().map(to_unit).collect()
    }

    /// The latent of a picture as its decoder reads it, with noise of `stream`.
    ///
    /// # Errors
    /// [`Error::Denoiser`] where it is not finite.
    pub fn of(&mut self, picture: &[f32], stream: Stream) -> Result<Vec<f32>> {
        let moments = self.encoder.run_sized(self.pictures.shape, picture);
        let channels = self.latent.channels;
        let mut latent = vec![0.0; self.latent.elements()];
        stream.fill_normals(&mut latent);
        for (latent, moments) in latent.chunks_exact_mut(channels).zip(moments.chunks_exact(2 * channels)) {
            let (means, log_variances) = moments.split_at(channels);
            for ((value, mean), log_variance) in latent.iter_mut().zip(means).zip(log_variances) {
                *value = mean + (0.5 * bounded(*log_variance)).exp() * *value;
            }
        }
        match latent.iter().all(|value| value.is_finite()) {
            true => Ok(latent),
            false => Err(Error::Denoiser("the encoder made values that are not finite".to_owned())),
        }
    }
}

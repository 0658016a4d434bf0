//! What a decoder learns: to make of a latent what it made before, or the picture that it is of.

use super::Latents;
use crate::nets::program::{Inputs, Program};
use crate::nets::{on_tape, sliced::Sliced, vae};
use crate::ops::Tape;
use crate::supernet::Spec;
use crate::training::batch::{Draw, Shuffle};
use crate::training::optimizer::Slot;
use crate::training::trainer::{Gradients, Pass, Task, tape};
use crate::{ImageShape, Result};
use candle_core::{Device, Tensor};

/// Pictures, their latents, and the decoder that they are decoded by.
///
/// The full width is held to the decoder that training began with, as every other: weights are shared, so that it moves where narrower ones
/// learn. Kept as it was to the bit, a narrower width could change nothing that it shares, which is all that it has.
pub struct Reconstruction<'a> {
    program: Program,
    latents: Latents<'a>,
    shuffle: Shuffle,
    seed: u64,
}

/// What a step sees.
pub struct Batch {
    /// `[B, height, width, colours]` in [-1, 1].
    pub pictures: Vec<f32>,
    /// `[B, height / f, width / f, channels]`, as a decoder reads them.
    pub latents: Vec<f32>,
}

impl<'a> Reconstruction<'a> {
    /// Of the autoencoder of these options; everything random is drawn from `seed`.
    pub fn new(vae: &vae::Config, latents: Latents<'a>, seed: u64) -> Self {
        let ImageShape { height, width, .. } = latents.shape();
        let shuffle = Shuffle::new(latents.pictures().len(), seed);
        Self { program: vae.decoder(height, width), latents, shuffle, seed }
    }

    fn decoded(&self, tape: &Tape, weights: &Sliced, batch: &Batch) -> Result<Tensor> {
        let ImageShape { height, width, channels } = self.latents.shape();
        let count = batch.latents.len() / self.latents.shape().elements();
        let latents = Tensor::from_slice(&batch.latents, (count, height, width, channels), &Device::Cpu)?;
        on_tape::forward(&self.program, tape, weights, &latents, Inputs::NONE)
    }
}

impl Task for Reconstruction<'_> {
    type Batch = Batch;

    const TEACHES_FULL: bool = true;

    fn spec(&self) -> &Spec {
        &self.program.spec
    }

    fn draw(&mut self, position: u64, size: usize, _: &[Slot]) -> Result<Batch> {
        let mut batch = Batch { pictures: Vec::new(), latents: Vec::new() };
        for key in position..position + size as u64 {
            let picture = self.latents.picture(self.shuffle.at(key));
            batch.latents.extend(self.latents.of(&picture, Draw::Noise.at(self.seed, key))?);
            batch.pictures.extend(picture);
        }
        Ok(batch)
    }

    fn taught(&self, teacher: &Sliced, batch: &Batch) -> Result<Vec<f32>> {
        Ok(self.decoded(&Tape::off(), teacher, batch)?.flatten_all()?.to_vec1()?)
    }

    /// The loss is the mean over values of the squared distance to the picture, mixed with that to the teacher's where there is one.
    fn pass(&self, weights: &Sliced, batch: &Batch, teacher: Option<(&[f32], f64)>) -> Result<Pass> {
        let tape = tape(self.spec(), weights);
        let picture = self.decoded(&tape, weights, batch)?;
        let made = picture.flatten_all()?.to_vec1::<f32>()?;
        let (mut loss, mut gradient, values) = (0.0, Vec::with_capacity(made.len()), made.len() as f64);
        for (place, (made, want)) in made.iter().zip(&batch.pictures).enumerate() {
            let (error, share) = (f64::from(made - want), teacher.map_or(0.0, |(_, share)| share));
            let taught = teacher.map_or(0.0, |(taught, _)| f64::from(made - taught[place]));
            loss += (1.0 - share) * error * error + share * taught * taught;
            gradient.push((2.0 / values * ((1.0 - share) * error + share * taught)) as f32);
        }
        let gradient = Tensor::from_vec(gradient, picture.shape(), &Device::Cpu)?;
        let gradients = Gradients::of(&tape.backward(&picture, gradient)?, weights)?;
        Ok(Pass { loss: loss / values, made, gradients })
    }
}

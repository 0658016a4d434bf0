//! Importance of a decoder's channels: how much the picture would change, to first order, without one.
//!
//! Why not how much worse it would be as a picture: what is cut is trained to be what the full decoder makes, so its loss is the squared
//! distance to that. At full width this has no slope, and its curvature is `J^T J` with the Jacobian J of the picture by the weights: without
//! a channel, the loss is `|J w|^2` over the channel's weights w. For a vector v of independent normal values `v^T J w` is normal with the
//! variance `|J w|^2`, so that the mean of its absolute value over samples, each with a v of its own, is `sqrt(2 / pi) |J w|`: one
//! backward pass a sample, as Taylor importance takes, and nothing that depends on how well the autoencoder does on the picture.

use super::Latents;
use crate::nets::program::{Inputs, Program};
use crate::nets::{on_tape, sliced::Sliced};
use crate::ops::Tape;
use crate::philox::Stream;
use crate::supernet::Supernet;
use crate::training::importance::{mean_over_samples, scores};
use crate::{ImageShape, Result};
use candle_core::{Device, Tensor};

/// Streams of the seeded draws, beside those of [`crate::training::importance`].
const PICTURE_STREAM: u32 = 44;
const LATENT_STREAM: u32 = 45;
const DIRECTION_STREAM: u32 = 46;

/// Latents to rank on, of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// The size of each.
    pub shape: ImageShape,
    /// As a decoder reads them, each `[height, width, channels]`.
    pub latents: Vec<Vec<f32>>,
    /// What the directions are drawn from.
    pub seed: u64,
}

impl Samples {
    /// The latents of `count` pictures, drawn with replacement. Sample i depends on `seed` and i alone.
    ///
    /// # Errors
    /// If a picture cannot be read, or its latent is not finite.
    pub fn draw(latents: &mut Latents, seed: u64, count: usize) -> Result<Self> {
        let (count_of_all, shape) = (latents.pictures().len() as u32, latents.shape());
        let mut draw = |sample: u64| {
            let index = Stream::new(seed, PICTURE_STREAM, sample).below(0, count_of_all) as usize;
            latents.of(&latents.picture(index), Stream::new(seed, LATENT_STREAM, sample))
        };
        Ok(Self { shape, latents: (0..count as u64).map(&mut draw).collect::<Result<_>>()?, seed })
    }
}

/// The importance of each channel of each pipe, in the order in which `supernet` has them.
///
/// Of one sample: `|sum w g|` over the weights that produce the channel plus `|sum w g|` over those that consume it, where g is the
/// gradient of `v^T D / sqrt(n)`, the picture's n values along a random direction; an attention offset adds this up over q, k and v. The
/// result is the mean over the samples. `progress` is told how many are done.
///
/// # Errors
/// [`crate::Error::Input`] without a sample or where a score is not finite; [`crate::Error::Tensor`] on a device fault.
pub fn importance(
    program: &Program,
    supernet: &Supernet,
    samples: &Samples,
    progress: impl FnMut(usize),
) -> Result<Vec<Vec<f64>>> {
    let spec = &program.spec;
    let full = Sliced::new(spec, supernet, &spec.full())?;
    let ImageShape { height, width, channels } = samples.shape;
    let of_sample = |index: usize| {
        let tape = Tape::recording(full.leaves());
        let latent = Tensor::from_slice(&samples.latents[index], (1, height, width, channels), &Device::Cpu)?;
        let picture = on_tape::forward(program, &tape, &full, &latent, Inputs::NONE)?;
        let direction =
            Tensor::from_vec(direction(samples.seed, index, picture.elem_count()), picture.shape(), &Device::Cpu)?;
        scores(spec, &full, &tape.backward(&picture, direction)?)
    };
    mean_over_samples(spec, samples.latents.len(), of_sample, progress)
}

/// The direction of a sample, `v / sqrt(n)`.
pub fn direction(seed: u64, sample: usize, values: usize) -> Vec<f32> {
    let mut direction = vec![0.0; values];
    Stream::new(seed, DIRECTION_STREAM, sample as u64).fill_normals(&mut direction);
    let scale = 1.0 / (values as f32).sqrt();
    direction.iter_mut().for_each(|value| *value *= scale);
    direction
}

//! Taylor importance: how much the loss would change, to first order, without a channel.

use crate::nets::{Network, sliced::Sliced};
use crate::ops::{Gradients, Tape};
use crate::philox::Stream;
use crate::supernet::spec::{Param, Role, Slice};
use crate::supernet::{Spec, Supernet};
use crate::training::config::Loss;
use crate::training::data::Examples;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Streams of the seeded draws; the training step has its own, below 40.
const IMAGE_STREAM: u32 = 40;
const SIGMA_STREAM: u32 = 41;
const NOISE_STREAM: u32 = 42;
const LATENT_STREAM: u32 = 43;

/// N noisy images to rank on.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// Clean images: `[N, H, W, C]`, in [-1, 1].
    pub x0: Vec<f32>,
    /// Noise of unit variance: `[N, H, W, C]`.
    pub noise: Vec<f32>,
    /// Noise levels: `[N]`.
    pub sigma: Vec<f64>,
    /// Classes: `[N]`.
    pub classes: Vec<Option<usize>>,
    /// Contexts, `[N, tokens, channels]`, of a network that reads some; else empty.
    pub context: Vec<f32>,
}

impl Samples {
    /// Draws `count` examples with replacement, noise levels as `loss` says and noise.
    ///
    /// Sample i depends on `seed` and i alone, so a longer draw begins with the shorter one.
    ///
    /// # Errors
    /// [`Error::Input`] if the images or the classes of `examples`, or the levels of `loss`, are not those of `network`.
    pub fn draw(examples: &dyn Examples, network: &Network, loss: &Loss, seed: u64, count: usize) -> Result<Self> {
        let (elements, preconditioning) = (network.state().elements(), network.preconditioning());
        network.check_denoises()?;
        examples.check(network.state(), network.classes())?;
        loss.check(preconditioning)?;
        let [mut x0, mut noise] = [(); 2].map(|()| vec![0.0; count * elements]);
        let mut sigma = Vec::with_capacity(count);
        let mut classes = Vec::with_capacity(count);
        let of_samples = x0.chunks_exact_mut(elements).zip(noise.chunks_exact_mut(elements));
        for (sample, (x0, noise)) in (0..).zip(of_samples) {
            let index = Stream::new(seed, IMAGE_STREAM, sample).below(0, examples.count() as u32) as usize;
            examples.write(index, false, &Stream::new(seed, LATENT_STREAM, sample), x0);
            classes.push(Some(examples.label(index)));
            sigma.push(loss.level(preconditioning, &Stream::new(seed, SIGMA_STREAM, sample)));
            Stream::new(seed, NOISE_STREAM, sample).fill_normals(noise);
        }
        let context = examples.contexts(&classes)?;
        Ok(Self { x0, noise, sigma, classes, context })
    }

    /// N.
    pub fn len(&self) -> usize {
        self.sigma.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.sigma.is_empty()
    }
}

/// The importance of each channel of each pipe, in the order in which `supernet` has them.
///
/// Of one sample, with weights w and gradients g: `|sum w g|` over the weights that produce the channel plus `|sum w g|`
/// over those that consume it (Molchanov et al. 2019, eq. 8, grouped as the goldens define it); an attention offset adds
/// this up over the heads and over q, k and v. The result is the mean over the samples. A sample's loss is the mean over
/// its elements of `weight(sigma) (D - x0)^2`; each sample has a backward pass of its own, since the absolute value of a
/// batch's gradient would let samples cancel. `progress` is told how many samples are done.
///
/// # Errors
/// [`Error::Input`] without a sample or where a score is not finite; [`Error::Tensor`] on a device fault.
pub fn taylor(
    network: &Network,
    supernet: &Supernet,
    samples: &Samples,
    progress: impl FnMut(usize),
) -> Result<Vec<Vec<f64>>> {
    let spec = network.spec();
    let full = Sliced::new(spec, supernet, &spec.full())?;
    mean_over_samples(spec, samples.len(), |index| of_sample(network, &full, samples, index), progress)
}

/// The mean over so many samples of the scores `of_sample`, by pipe and channel. `progress` is told how many are done.
///
/// # Errors
/// [`Error::Input`] without a sample or where a score is not finite; those of `of_sample`.
pub(super) fn mean_over_samples(
    spec: &Spec,
    samples: usize,
    of_sample: impl Fn(usize) -> Result<Vec<Vec<f64>>> + Sync,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Vec<f64>>> {
    if samples == 0 {
        return Err(Error::input("samples", "there is none to rank on; give at least 1"));
    }
    let mut total: Vec<Vec<f64>> = spec.pipes.iter().map(|pipe| vec![0.0; pipe.width]).collect();
    // Samples run side by side, but are added up in their order: the sum does not depend on the number of threads.
    let side_by_side = rayon::current_num_threads();
    for start in (0..samples).step_by(side_by_side) {
        let chunk = start..(start + side_by_side).min(samples);
        let done = chunk.end;
        let scores: Vec<Vec<Vec<f64>>> = chunk.into_par_iter().map(&of_sample).collect::<Result<_>>()?;
        for scores in scores {
            total.iter_mut().flatten().zip(scores.iter().flatten()).for_each(|(total, score)| *total += score);
        }
        progress(done);
    }
    total.iter_mut().flatten().for_each(|total| *total /= samples as f64);
    match spec.pipes.iter().zip(&total).find(|(_, scores)| scores.iter().any(|score| !score.is_finite())) {
        Some((pipe, _)) => Err(Error::input("samples", format!("the importance of {} is not finite", pipe.name))),
        None => Ok(total),
    }
}

fn of_sample(network: &Network, full: &Sliced, samples: &Samples, index: usize) -> Result<Vec<Vec<f64>>> {
    let elements = network.image().elements();
    let sigma = samples.sigma[index];
    let x0 = &samples.x0[index * elements..][..elements];
    let noise = &samples.noise[index * elements..][..elements];
    let x: Vec<f32> = x0.iter().zip(noise).map(|(x0, noise)| x0 + sigma as f32 * noise).collect();

    let tape = Tape::recording(full.leaves());
    let context = samples.context.len() / samples.len();
    let context = &samples.context[index * context..][..context];
    let call = network.call(&tape, full, &x, &[sigma], &samples.classes[index..][..1], context)?;
    // d loss / d F = c_out d loss / d D.
    let scale = 2.0 * network.preconditioning().loss_weight(sigma) * call.coefficients[0].c_out / elements as f64;
    let errors = call.denoised.iter().zip(x0).map(|(&d, &x0)| (scale * f64::from(d - x0)) as f32);
    let grad = Tensor::from_iter(errors, &Device::Cpu)?.reshape(call.raw.shape())?;
    scores(network.spec(), full, &tape.backward(&call.raw, grad)?)
}

/// What a channel is worth by the gradients of one sample, by pipe and channel: see [`taylor`].
pub(super) fn scores(spec: &Spec, full: &Sliced, gradients: &Gradients) -> Result<Vec<Vec<f64>>> {
    let mut scores: Vec<Vec<f64>> = spec.pipes.iter().map(|pipe| vec![0.0; pipe.width]).collect();
    for (param, weight) in spec.params.iter().zip(full.leaves()) {
        for slice in param.slices.iter().filter(|slice| slice.role != Role::Follows) {
            let Some(gradient) = gradients.of(weight) else { continue };
            let weight = weight.flatten_all()?.to_vec1::<f32>()?;
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            add_products(param, slice, &weight, &gradient, &mut scores[slice.pipe]);
        }
    }
    Ok(scores)
}

/// Adds `sum over copies |sum w g|` of each channel along the slice's axis.
fn add_products(param: &Param, slice: &Slice, weight: &[f32], gradient: &[f32], scores: &mut [f64]) {
    let width = param.shape[slice.axis];
    if width == 0 {
        return;
    }
    let inner: usize = param.shape[slice.axis + 1..].iter().product();
    let mut sums = vec![0.0; slice.copies * width];
    let rows = weight.chunks_exact(inner).zip(gradient.chunks_exact(inner));
    for (row, (weight, gradient)) in rows.enumerate() {
        let (outer, channel) = (row / width, row % width);
        let products = weight.iter().zip(gradient).map(|(&w, &g)| f64::from(w) * f64::from(g));
        sums[outer % slice.copies * width + channel] += products.sum::<f64>();
    }
    for copy in sums.chunks_exact(width) {
        scores.iter_mut().zip(copy).for_each(|(score, sum)| *score += sum.abs());
    }
}

//! Training of the autoencoder of a model that draws texts: to give pictures back, with latents near the normal distribution.

use super::batch::{Draw, Shuffle};
use super::config::{Config, Stage};
use super::data::{Dataset, Examples};
use super::flow::{Flow, Outcome};
use super::learner::Learner;
use super::optimizer::{Adam, Region};
use super::state::{StageName, State, Weight};
use super::trainer::Gradients;
use crate::nets::model::CARD;
use crate::nets::program::{Inputs, Program};
use crate::nets::sliced::Sliced;
use crate::nets::text_to_image::VAE;
use crate::nets::vae::bounded;
use crate::nets::{Decoder, Model, Runner, Threads, on_tape, public};
use crate::ops::Tape;
use crate::supernet::{Spec, Supernet};
use crate::{Error, ImageShape, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Pictures by whose latents the scale of latents is measured, at most.
const SCALED_BY: usize = 256;

impl Flow<'_> {
    /// Trains the autoencoder of the model that was read from `dir`, by the config's `[vae]`; what comes out is that model with another
    /// autoencoder, whose latents have a deviation of 1. Its denoiser does not know them: it is trained afterwards.
    ///
    /// # Errors
    /// [`Error::Input`] if the model draws no texts, or the config, the data or the directory do not fit.
    pub fn autoencoder(&self, model: &Model, dir: &Path) -> Result<Outcome> {
        let config = self.config;
        let stage = config.stage(StageName::Vae)?;
        self.check_card(&model.card, dir)?;
        let (Some((encoder, encoder_weights)), Some(decoder)) = (model.encoder_network()?, Decoder::original(model)?)
        else {
            return Err(Error::input(dir.display(), "draws no latents, so it has no autoencoder to train"));
        };
        let (decoder, decoder_weights) = (decoder.program, decoder.supernet);
        let state = self.sitting().resumed(&decoder.spec)?;
        if state.is_none() && self.out.join(CARD).exists() {
            return Err(Error::input("--out", format!("{} holds a model already", self.out.display())));
        }
        if state.as_ref().is_some_and(|state| state.position.stage != StageName::Vae) {
            return Err(Error::input("--out", format!("{} holds a run of another kind", self.out.display())));
        }
        let pictures = config.data.pictures(encoder.image).and_then(|pictures| {
            pictures.check(encoder.image, 0)?;
            Ok(pictures)
        });
        let pictures = pictures.map_err(|error| error.in_file(&config.path))?;
        tracing::info!("{}", pictures.summary());
        std::fs::create_dir_all(self.out).map_err(Error::io(self.out))?;
        let state = match state {
            Some(state) => state,
            None => {
                let weights = encoder.spec.params.iter().zip(&encoder_weights.params);
                let beside = weights.map(|(param, weight)| {
                    let (name, shape) = (param.name.clone(), param.shape.clone());
                    Ok(Weight { name, shape, values: weight.flatten_all()?.to_vec1::<f32>()? })
                });
                let beside = beside.collect::<Result<_>>()?;
                State::begin(StageName::Vae, &decoder_weights, &[])?.with_beside(beside)
            }
        };
        let mut trainer = AutoencoderTrainer::new([encoder, decoder], config, stage, &pictures, state);
        if self.sitting().run(&mut trainer)? == Outcome::Stopped {
            return Ok(Outcome::Stopped);
        }
        let mut values = BTreeMap::new();
        let [encoder, decoder] = trainer.weights(true)?;
        for (program, weights) in [(&trainer.encoder, &encoder), (&trainer.decoder, &decoder)] {
            values.extend(public::values(&program.spec, &weights.params)?);
        }
        let mut card = model.card.clone();
        if let Some(parts) = &mut card.text_to_image {
            parts.vae.scaling_factor = 1.0 / deviation(&trainer.encoder, &encoder, &pictures)?;
        }
        card.made = self.made(card.made, "train --part vae", &trainer.state.position);
        let rows = model.subnets().to_vec();
        let supernet = model.supernet.clone();
        let trained =
            Model::unallocated(card, supernet)?.with_parts_of(model).with_subnets(&model.table.target, rows)?;
        trained.with_trained(VAE, values)?.write(self.out, DType::F32)?;
        Ok(Outcome::Finished)
    }
}

/// The standard deviation of the latents of some pictures, before they are scaled: of their means, and about them.
fn deviation(encoder: &Arc<Program>, weights: &Supernet, pictures: &Dataset) -> Result<f64> {
    let mut runner = Runner::new(encoder.clone(), weights, Threads::ALL)?;
    let channels = encoder.output_channels();
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    let mut picture = vec![0.0; encoder.image.elements()];
    for index in 0..pictures.len().min(SCALED_BY) {
        Examples::write(pictures, index, false, &Draw::Latent.at(0, 0), &mut picture);
        for pixel in runner.run(&picture).chunks_exact(channels) {
            let (means, logarithms) = pixel.split_at(channels / 2);
            for (&mean, &logarithm) in means.iter().zip(logarithms) {
                let (mean, variance) = (f64::from(mean), f64::from(bounded(logarithm)).exp());
                (count, sum, squares) = (count + 1.0, sum + mean, squares + mean * mean + variance);
            }
        }
    }
    let mean = sum / count;
    Ok((squares / count - mean * mean).sqrt())
}

/// The stage under way. Its state is of the decoder, with the encoder beside it.
pub struct AutoencoderTrainer<'a> {
    encoder: Arc<Program>,
    decoder: Arc<Program>,
    config: &'a Config,
    stage: &'a Stage,
    pictures: &'a Dataset,
    shuffle: Shuffle,
    seed: u64,
    adam: Adam,
    /// What is written to disk.
    pub state: State,
}

/// A forward and backward pass.
pub(super) struct Pass {
    /// What is minimised.
    pub loss: f64,
    /// By parameter, of the decoder and then of the encoder.
    pub gradients: Vec<Option<Vec<f32>>>,
}

impl<'a> AutoencoderTrainer<'a> {
    /// The stage from `state`, on pictures of the size of the encoder.
    pub fn new(
        [encoder, decoder]: [Program; 2],
        config: &'a Config,
        stage: &'a Stage,
        pictures: &'a Dataset,
        mut state: State,
    ) -> Self {
        state.position.losses.resize(1, None);
        let seed = config.seed.wrapping_mul(2).wrapping_add(StageName::Vae as u64);
        let shuffle = Shuffle::new(pictures.len(), seed);
        let (encoder, decoder, adam) = (Arc::new(encoder), Arc::new(decoder), Adam::default());
        Self { encoder, decoder, config, stage, pictures, shuffle, seed, adam, state }
    }

    /// The weights of both halves as they are, or their average.
    fn weights(&self, average: bool) -> Result<[Supernet; 2]> {
        let decoder = self.state.supernet(&self.decoder.spec, average)?;
        let mut params = Vec::with_capacity(self.state.beside.len());
        for ((_, shape), slot) in self.state.beside.iter().zip(self.state.beside()) {
            let values = if average { &slot.average } else { &slot.value };
            params.push(Tensor::from_slice(values, shape.as_slice(), &Device::Cpu)?);
        }
        Ok([Supernet::original(&self.encoder.spec, params), decoder])
    }

    /// Forward and backward on pictures, `[B, height, width, channels]` in [-1, 1], with `chance`, `[B, height, width, channels]` of
    /// their latents. The loss is the mean over values of the squared error of what comes back, and over those of latents `kl` times
    /// `(mean^2 + variance - 1 - ln variance) / 2`, the divergence from the normal distribution (Kingma and Welling 2014, appendix B;
    /// Rombach et al. 2022, section G).
    pub(super) fn pass(&self, pictures: &[f32], chance: &[f32]) -> Result<Pass> {
        let ImageShape { height, width, channels } = self.encoder.image;
        let batch = pictures.len() / self.encoder.image.elements();
        let [encoder, decoder] = self.weights(false)?;
        let encoder = Sliced::new(&self.encoder.spec, &encoder, &self.encoder.spec.full())?;
        let decoder = Sliced::new(&self.decoder.spec, &decoder, &self.decoder.spec.full())?;

        let x = Tensor::from_slice(pictures, (batch, height, width, channels), &Device::Cpu)?;
        let encoding = Tape::recording(encoder.leaves());
        let encoded = on_tape::forward(&self.encoder, &encoding, &encoder, &x, Inputs::NONE)?;
        let moments = encoded.flatten_all()?.to_vec1::<f32>()?;
        let of = self.encoder.output_channels() / 2;
        let mut latent = Vec::with_capacity(chance.len());
        for (moments, chance) in moments.chunks_exact(2 * of).zip(chance.chunks_exact(of)) {
            let (means, logarithms) = moments.split_at(of);
            let sampled = means.iter().zip(logarithms).zip(chance);
            latent.extend(sampled.map(|((mean, &log), chance)| mean + (0.5 * bounded(log)).exp() * chance));
        }
        let ImageShape { height, width, channels } = self.decoder.image;
        let latent = Tensor::from_vec(latent, (batch, height, width, channels), &Device::Cpu)?;
        let decoding = Tape::recording(decoder.leaves().iter().chain([&latent]));
        let decoded = on_tape::forward(&self.decoder, &decoding, &decoder, &latent, Inputs::NONE)?;

        let (mut loss, count) = (0.0, pictures.len() as f64);
        let mut of_decoded = Vec::with_capacity(pictures.len());
        for (got, want) in decoded.flatten_all()?.to_vec1::<f32>()?.iter().zip(pictures) {
            let error = f64::from(got - want);
            loss += error * error / count;
            of_decoded.push((2.0 * error / count) as f32);
        }
        let of_decoded = Tensor::from_vec(of_decoded, decoded.shape(), &Device::Cpu)?;
        let found = decoding.backward(&decoded, of_decoded)?;
        let of_latent =
            found.of(&latent).expect("the picture depends on its latent").flatten_all()?.to_vec1::<f32>()?;
        let decoder = Gradients::of(&found, &decoder)?;

        let share = self.config.loss.kl / chance.len() as f64;
        let mut of_encoded = Vec::with_capacity(moments.len());
        let pixels = moments.chunks_exact(2 * of).zip(of_latent.chunks_exact(of)).zip(chance.chunks_exact(of));
        for ((moments, of_latent), chance) in pixels {
            let (means, logarithms) = moments.split_at(of);
            let of_mean = |(&mean, of_latent): (&f32, &f32)| of_latent + (share * f64::from(mean)) as f32;
            of_encoded.extend(means.iter().zip(of_latent).map(of_mean));
            for (((&mean, &log), of_latent), chance) in means.iter().zip(logarithms).zip(of_latent).zip(chance) {
                let (mean, within) = (f64::from(mean), f64::from(bounded(log)));
                let variance = within.exp();
                loss += share * 0.5 * (mean * mean + variance - 1.0 - within);
                // Where it is bounded, it says nothing.
                let is_free = f64::from(log) == within;
                let through = f64::from(*of_latent) * 0.5 * variance.sqrt() * f64::from(*chance);
                of_encoded.push(if is_free { (through + share * 0.5 * (variance - 1.0)) as f32 } else { 0.0 });
            }
        }
        let of_encoded = Tensor::from_vec(of_encoded, encoded.shape(), &Device::Cpu)?;
        let encoder = Gradients::of(&encoding.backward(&encoded, of_encoded)?, &encoder)?;
        Ok(Pass { loss, gradients: [decoder.values, encoder.values].concat() })
    }
}

impl Learner for AutoencoderTrainer<'_> {
    fn learn(&mut self) -> Result<()> {
        let start = Instant::now();
        let (seen, size) = (self.state.position.seen, self.stage.batch);
        let elements = self.encoder.image.elements();
        let latent = self.decoder.image.elements();
        let [mut pictures, mut chance] = [elements, latent].map(|of| vec![0.0; size * of]);
        let samples = pictures.chunks_exact_mut(elements).zip(chance.chunks_exact_mut(latent));
        for (key, (picture, chance)) in (seen..).zip(samples) {
            let stream = Draw::Latent.at(self.seed, key);
            let is_mirrored = self.config.loss.flip && Draw::Flip.at(self.seed, key).uniform(0) < 0.5;
            Examples::write(self.pictures, self.shuffle.at(key), is_mirrored, &stream, picture);
            stream.fill_normals(chance);
        }
        let Pass { loss, gradients } = self.pass(&pictures, &chance)?;
        if !loss.is_finite() {
            return Err(self.not_finite(format!("the loss is {loss}")));
        }
        let shapes = self.decoder.spec.params.iter().map(|param| &param.shape);
        let shapes = shapes.chain(self.state.beside.iter().map(|(_, shape)| shape));
        let regions: Vec<Region> = shapes.map(|shape| Region::whole(shape)).collect();
        let norm = self.adam.step(&mut self.state.slots, &regions, &gradients, self.stage, seen);
        if !norm.is_finite() {
            return Err(self.not_finite(format!("the norm of the gradient is {norm}")));
        }
        self.state.position.advance(size, start.elapsed(), [(0, loss)]);
        Ok(())
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn spec(&self) -> &Spec {
        &self.decoder.spec
    }

    fn stage(&self) -> &Stage {
        self.stage
    }

    fn names(&self) -> Vec<String> {
        vec!["vae".to_owned()]
    }
}

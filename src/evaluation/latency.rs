//! How long a call of the denoiser takes.

use crate::ImageShape;
use crate::Result;
use crate::diffusion::{Level, Noise, Update};
use crate::nets::{Begin, Codec, Condition, Rows, Source, opened::Calls};
use crate::nets::{HostRunner, Move, Network, Opened, Sampler, Threads};
use crate::ops::cpu::fused::Layer;
use crate::ops::cpu::peak;
use crate::philox::{NoiseKey, Stream};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Time for the calls of each setting.
    pub time: Duration,
    /// Rounds over all settings, at least 1: what disturbs the machine for a while then hits all of them.
    pub rounds: u32,
}

impl Pace {
    /// So much time for each setting, in enough rounds for the median to pass over a disturbance.
    pub fn thorough(time: Duration) -> Self {
        Self { time, rounds: 8 }
    }
}

/// One way to call a denoiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Index of the subnet.
    pub subnet: usize,
    /// Samples of a call.
    pub batch: usize,
    /// Threads that compute.
    pub threads: usize,
}

/// What [`measure`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Timings {
    /// The median of each setting's calls, in milliseconds.
    pub ms: Vec<f64>,
    /// The machine's rate of f32 multiply-adds by number of threads, in GFLOP/s: the median over the rounds, so that it
    /// is taken under the same disturbances as the calls.
    pub peak_gflops: BTreeMap<usize, f64>,
}

/// A batch to call a denoiser on.
#[derive(Clone, Debug)]
pub struct Input {
    image: ImageShape,
    x: Vec<f32>,
    levels: Vec<Level>,
    conditions: Vec<Condition>,
}

impl Input {
    /// Noise of the levels that a sampler passes, each sample with a class where the network has some.
    pub fn new(network: &Network, batch: usize) -> Self {
        let elements = network.state().elements();
        let sigma = Self::levels(batch);
        let mut x = vec![0.0; batch * elements];
        Stream::new(0, 1, 0).fill_normals(&mut x);
        for (x, sigma) in x.chunks_exact_mut(elements).zip(&sigma) {
            x.iter_mut().for_each(|x| *x *= *sigma as f32);
        }
        let conditions = (0..batch).map(|sample| sample.checked_rem(network.classes()).into()).collect();
        let levels = sigma.into_iter().map(Level::from).collect();
        Self { image: network.state(), x, levels, conditions }
    }

    fn rows(&self) -> Rows<'_> {
        Rows { image: self.image, x: &self.x, beside: &[], levels: &self.levels, conditions: &self.conditions }
    }

    /// So many levels that a sampler passes.
    fn levels(batch: usize) -> Vec<f64> {
        const SIGMA: [f64; 2] = [0.02, 20.0];
        let level = |sample: usize| SIGMA[0] * (SIGMA[1] / SIGMA[0]).powf((sample as f64 + 0.5) / batch as f64);
        (0..batch).map(level).collect()
    }

    /// Calls the subnet of this index.
    pub fn call(&self, runner: &mut HostRunner, subnet: usize) {
        black_box(runner.call(subnet, black_box(&self.rows())));
    }

    /// As [`Self::call`]; what each layer took.
    fn timed_call(&self, runner: &mut HostRunner, subnet: usize) -> Vec<Layer> {
        black_box(runner.timed_call(subnet, black_box(&self.rows()))).1
    }
}

/// The median times of an engine's calls of an opened model, in milliseconds: `settings` are subnets and samples. `progress` is
/// told how many rounds are over.
///
/// # Errors
/// On a device fault.
pub fn of_calls(
    opened: &mut dyn Opened,
    settings: &[(usize, usize)],
    pace: Pace,
    progress: &mut dyn FnMut(u32),
) -> Result<Vec<f64>> {
    match opened.calls() {
        Calls::Host(runner, pin) => {
            let threads = runner.threads();
            let settings: Vec<_> = settings.iter().map(|&(subnet, batch)| Setting { subnet, batch, threads }).collect();
            Ok(measure(runner, &settings, pin, pace, progress).ms)
        }
        Calls::Device(sampler) => of_steps(sampler, settings, pace, progress),
    }
}

fn of_steps(
    sampler: &mut dyn Sampler,
    settings: &[(usize, usize)],
    pace: Pace,
    progress: &mut dyn FnMut(u32),
) -> Result<Vec<f64>> {
    let most = settings.iter().map(|&(_, batch)| batch).max().unwrap_or(0);
    let sigmas = Input::levels(most);
    let mut moves = Vec::with_capacity(most);
    for (image, &sigma) in sigmas.iter().enumerate() {
        let noise = [Noise { scale: sigma, draw: NoiseKey::INITIAL }, Noise::default()];
        let key = NoiseKey { seed: 0, image: image as u32 };
        let slot = sampler.begin(&Begin { key, noise, sigma, canvas: 0, source: &Source::default() })?;
        let condition = image.checked_rem(sampler.about().classes.len()).into();
        let level = Level::from(sigma);
        // Each image stays where it is: calls are alike.
        let update = Update { a_x: 1.0, ..Update::default() };
        moves.push(Move { slot, level, condition, guide: None, update, next: Some(level), watched: false });
    }
    let ms = rounds(settings.len(), pace, progress, |index| {
        let (subnet, batch) = settings[index];
        sampler.step(subnet, &moves[..batch])
    });
    moves.iter().for_each(|step| sampler.end(step.slot));
    ms
}

/// The median time of making a latent of a picture, in milliseconds; None where the model draws pictures itself.
///
/// # Errors
/// On a device fault.
pub fn of_encoder(opened: &mut dyn Opened, pace: Pace) -> Result<Option<f64>> {
    if opened.denoiser().about().decoders.is_empty() {
        return Ok(None);
    }
    Ok(Some(rounds(1, pace, &mut |_| {}, |_| opened.encode())?[0]))
}

/// The median time of making a picture of a latent by each subnet of the decoder, in milliseconds; none where the model draws pictures
/// itself.
///
/// # Errors
/// On a device fault.
pub fn of_decoders(opened: &mut dyn Opened, pace: Pace) -> Result<Vec<f64>> {
    let about = opened.denoiser().about();
    let (decoders, latent) = (about.decoders.len(), vec![0.0; about.state().elements()]);
    rounds(decoders, pace, &mut |_| {}, |decoder| opened.denoiser().picture(decoder, &latent).map(drop))
}

/// Times the calls of each setting at this pace; a setting has at least one call a round, after one that is not timed.
/// `progress` is told how many rounds are over. The runner is left with the threads of the last setting.
pub fn measure(
    runner: &mut HostRunner,
    settings: &[Setting],
    pin: bool,
    pace: Pace,
    progress: &mut dyn FnMut(u32),
) -> Timings {
    let mut inputs = BTreeMap::new();
    let mut by_threads: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, setting) in settings.iter().enumerate() {
        inputs.entry(setting.batch).or_insert_with(|| Input::new(runner.network(), setting.batch));
        by_threads.entry(setting.threads).or_default().push(index);
    }
    let mut ms = vec![Vec::new(); settings.len()];
    let mut peaks: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for done in 0..pace.rounds {
        progress(done);
        for (&threads, indices) in &by_threads {
            runner.set_threads(Threads { count: Some(threads), pin });
            peaks.entry(threads).or_default().push(peak::gflops(runner.team()));
            for &index in indices {
                let Setting { subnet, batch, .. } = settings[index];
                let input = &inputs[&batch];
                let timed = round(pace, || {
                    input.call(runner, subnet);
                    Ok(())
                });
                ms[index].extend(timed.expect("a call on the CPU does not fail"));
            }
        }
    }
    progress(pace.rounds);
    Timings {
        ms: ms.into_iter().map(median).collect(),
        peak_gflops: peaks.into_iter().map(|(threads, rates)| (threads, median(rates))).collect(),
    }
}

/// The times of calls for one round, in milliseconds, after one that is not timed: it wakes threads, and brings weights and
/// buffers into the caches.
fn round(pace: Pace, mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    call()?;
    let end = Instant::now() + pace.time / pace.rounds;
    let mut ms = Vec::new();
    loop {
        let start = Instant::now();
        call()?;
        let now = Instant::now();
        ms.push((now - start).as_secs_f64() * 1e3);
        if now >= end {
            return Ok(ms);
        }
    }
}

/// The median times of so many kinds of calls, in milliseconds; `call` is told which is wanted. `progress` is told how many
/// rounds are over.
///
/// # Errors
/// The first of `call`.
fn rounds(
    kinds: usize,
    pace: Pace,
    progress: &mut dyn FnMut(u32),
    mut call: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<f64>> {
    let mut ms = vec![Vec::new(); kinds];
    for done in 0..pace.rounds {
        progress(done);
        for (kind, ms) in ms.iter_mut().enumerate() {
            ms.extend(round(pace, || call(kind))?);
        }
    }
    progress(pace.rounds);
    Ok(ms.into_iter().map(median).collect())
}

/// Times the layers of a subnet's calls for about `time`, with the threads that `runner` has: each layer with the medians
/// of its times.
pub fn layers(runner: &mut HostRunner, subnet: usize, batch: usize, time: Duration) -> Vec<Layer> {
    let input = Input::new(runner.network(), batch);
    input.call(runner, subnet);
    repeated(time, || input.timed_call(runner, subnet))
}

/// The same of a subnet of a decoder, for a latent of this size.
pub fn layers_of_decoder(codec: &mut Codec, decoder: usize, size: ImageShape, time: Duration) -> Vec<Layer> {
    codec.layers(decoder, size);
    repeated(time, || codec.layers(decoder, size))
}

/// The layers of calls that are repeated for about `time`.
fn repeated(time: Duration, mut call: impl FnMut() -> Vec<Layer>) -> Vec<Layer> {
    let end = Instant::now() + time;
    let mut calls = vec![call()];
    while Instant::now() < end {
        calls.push(call());
    }
    typical(&calls)
}

/// The layers of several calls of one setting as one call, each time their median.
fn typical(calls: &[Vec<Layer>]) -> Vec<Layer> {
    let middle = |index: usize, time: &dyn Fn(&Layer) -> Duration| {
        Duration::from_secs_f64(median(calls.iter().map(|call| time(&call[index]).as_secs_f64()).collect()))
    };
    let layers = calls[0].iter().enumerate().map(|(index, layer)| Layer {
        time: middle(index, &|layer| layer.time),
        phases: std::array::from_fn(|phase| middle(index, &|layer| layer.phases[phase])),
        ..layer.clone()
    });
    layers.collect()
}

/// The middle of some values, at least one.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[half - 1] + values[half]) / 2.0 } else { values[half] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::fused::Kind;

    #[test]
    fn a_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(median(vec![3.0]), 3.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0, 4.0]), 3.0);
    }

    #[test]
    fn a_typical_call_has_the_median_of_each_layer() {
        let call = |norm: u64, copy: u64| {
            [("norm", Kind::Norm, norm), ("copy", Kind::Copy, copy)].map(|(name, kind, ms)| Layer {
                name: name.to_owned(),
                kind,
                shape: [2, 2, 4, 4],
                macs: 7,
                time: Duration::from_millis(ms),
                phases: [Duration::from_millis(ms / 2), Duration::ZERO, Duration::ZERO],
            })
        };
        let calls = [call(2, 30), call(90, 10), call(4, 20)].map(Vec::from);
        assert_eq!(typical(&calls), call(4, 20));
    }
}

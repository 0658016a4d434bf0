//! What a step sees: images, noise levels, noise and labels, all drawn by counter from the seed.

use super::config::Loss;
use super::data::Examples;
use crate::nets::Network;
use crate::philox::Stream;

/// Streams of the seed's generator; 0 is the noise of generated images.
#[derive(Clone, Copy)]
pub enum Draw {
    /// The order of the images in an epoch.
    Order = 1,
    /// Noise levels of a step.
    Sigma = 2,
    /// Noise of a step.
    Noise = 3,
    /// Which samples lose their label.
    Label = 4,
    /// Which subnet is trained.
    Subnet = 5,
    /// Initial weights.
    Init = 6,
    /// Which images are mirrored.
    Flip = 7,
    /// How far images are moved.
    Shift = 8,
    /// Latents from what their encoder gives.
    Latent = 9,
}

impl Draw {
    /// The stream of this draw at `step`.
    pub fn at(self, seed: u64, step: u64) -> Stream {
        Stream::new(seed, self as u32, step)
    }
}

/// Noisy images of one step.
pub struct Batch {
    /// Clean images in [-1, 1], or latents: `[B, H, W, C]`.
    pub x0: Vec<f32>,
    /// `x0 + sigma * noise`.
    pub x: Vec<f32>,
    /// Noise level of each sample.
    pub sigma: Vec<f64>,
    /// Class of each sample, or caption; `None` where it was dropped.
    pub labels: Vec<Option<usize>>,
}

/// Images without replacement, epoch by epoch.
pub struct Shuffle {
    len: usize,
    seed: u64,
    /// The last epoch asked for and its order.
    epoch: Option<(u64, Vec<u32>)>,
}

impl Shuffle {
    /// Of so many images, at least one.
    pub fn new(len: usize, seed: u64) -> Self {
        Self { len, seed, epoch: None }
    }

    /// The index of the `position`-th image of the run.
    pub fn at(&mut self, position: u64) -> usize {
        let (epoch, place) = (position / self.len as u64, (position % self.len as u64) as usize);
        if self.epoch.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            let stream = Draw::Order.at(self.seed, epoch);
            let mut order: Vec<u32> = (0..self.len as u32).collect();
            for last in (1..self.len).rev() {
                order.swap(last, stream.below(last as u64, last as u32 + 1) as usize);
            }
            self.epoch = Some((epoch, order));
        }
        let (_, order) = self.epoch.as_ref().expect("filled above");
        order[place] as usize
    }
}

/// Draws batches: images without replacement epoch by epoch, everything a function of (seed, position).
pub struct Batches<'a> {
    examples: &'a dyn Examples,
    loss: &'a Loss,
    network: &'a Network,
    seed: u64,
    shuffle: Shuffle,
}

impl<'a> Batches<'a> {
    /// Batches for a network; one that is told neither classes nor texts gets no labels.
    pub fn new(examples: &'a dyn Examples, loss: &'a Loss, network: &'a Network, seed: u64) -> Self {
        Self { examples, loss, network, seed, shuffle: Shuffle::new(examples.count(), seed) }
    }

    /// The batch of images `position..position + size` of the run. Runs that continue another begin at another `position`.
    pub fn draw(&mut self, position: u64, size: usize) -> Batch {
        let (seed, loss, network) = (self.seed, self.loss, self.network);
        let elements = self.examples.shape().elements();
        let mut x0 = vec![0.0; size * elements];
        let mut labels = Vec::with_capacity(size);
        let mut sigma = Vec::with_capacity(size);
        // One sub-stream a sample, keyed by its position: the batch size does not change what a sample is.
        for (key, x0) in (position..).zip(x0.chunks_exact_mut(elements)) {
            let index = self.shuffle.at(key);
            let is_mirrored = loss.flip && Draw::Flip.at(seed, key).uniform(0) < 0.5;
            self.examples.write(index, is_mirrored, &Draw::Latent.at(seed, key), x0);
            sigma.push(loss.level(network.preconditioning(), &Draw::Sigma.at(seed, key)));
            let is_told = network.is_told() && Draw::Label.at(seed, key).uniform(0) >= loss.label_dropout;
            labels.push(is_told.then(|| self.examples.label(index)));
        }
        let mut x = vec![0.0; size * elements];
        for (sample, (x, x0)) in x.chunks_exact_mut(elements).zip(x0.chunks_exact(elements)).enumerate() {
            Draw::Noise.at(seed, position + sample as u64).fill_normals(x);
            let sigma = sigma[sample] as f32;
            x.iter_mut().zip(x0).for_each(|(x, x0)| *x = x0 + sigma * *x);
        }
        Batch { x0, x, sigma, labels }
    }
}

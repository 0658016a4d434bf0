//! How good the images of a plan are, against those of the best plan.

use crate::diffusion::{Plan, SigmaRange, Trajectory};
use crate::nets::Denoiser;
use crate::{Error, Result};
use std::sync::Arc;

/// What [`Yardstick::quality`] is, in a profile.
pub const METRIC: &str = "mse-to-reference";
/// The plan that every other is compared with: EDM's own number of steps, at full width.
pub const REFERENCE: &str = "heun-18@full";
/// Images in one call.
const BATCH: usize = 16;

/// The plan [`REFERENCE`].
pub fn reference() -> Plan {
    REFERENCE.parse().expect("the reference parses")
}

/// Where an image starts: its noise and its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Start {
    seed: u64,
    class: Option<usize>,
}

/// The reference's images of a fixed set of seeds and classes: what other plans are measured with.
#[derive(Clone, Debug)]
pub struct Yardstick {
    range: SigmaRange,
    starts: Vec<Start>,
    images: Vec<Vec<f64>>,
    unrelated: f64,
}

impl Yardstick {
    /// Draws the reference's images of the seeds 0 to `images` - 1 (at least 2). Classes take turns, every one at least
    /// twice: with fewer than two images a class, some classes are left out.
    ///
    /// # Errors
    /// If the images are no numbers or do not depend on the seed, or the device fails.
    pub fn new(denoiser: &mut dyn Denoiser, range: SigmaRange, images: usize) -> Result<Self> {
        let starts = starts(images.max(2), denoiser.classes().len());
        let images = draw(denoiser, range, &starts, &reference())?;
        let unrelated = unrelated(&starts, &images);
        if !(unrelated.is_finite() && unrelated > 0.0) {
            let problem = format!("differ by {unrelated} in the mean square: no plan can be compared with them");
            return Err(Error::input("model", format!("the images of {REFERENCE} of different seeds {problem}")));
        }
        Ok(Self { range, starts, images, unrelated })
    }

    /// How many images there are.
    pub fn images(&self) -> usize {
        self.images.len()
    }

    /// The mean squared distance, by pixel in [-1, 1], of two images of one class and different seeds.
    pub fn unrelated(&self) -> f64 {
        self.unrelated
    }

    /// The quality of `plan`: 1 less the mean squared distance of its images to the reference's of the same seed and
    /// class, over that of [`Self::unrelated`] ones. 1 is the reference, 0 no better than another seed's image; a blur,
    /// the mean of its class, has 0.5, since unrelated images are twice their variance apart. Not finite where the
    /// plan's images are not. The same for the same plan, always.
    ///
    /// # Errors
    /// If the device fails.
    pub fn quality(&self, denoiser: &mut dyn Denoiser, plan: &Plan) -> Result<f64> {
        let images = draw(denoiser, self.range, &self.starts, plan)?;
        let distances = images.iter().zip(&self.images).map(|(image, reference)| distance(image, reference));
        Ok(1.0 - distances.sum::<f64>() / images.len() as f64 / self.unrelated)
    }
}

/// Seeds from 0, with classes in turn; as many classes, spread over all, as have two images each.
fn starts(images: usize, classes: usize) -> Vec<Start> {
    let turns = classes.min(images / 2);
    let class = |index: usize| index.checked_rem(turns).map(|turn| turn * classes / turns);
    (0..images).map(|index| Start { seed: index as u64, class: class(index) }).collect()
}

/// The images of a plan, in the order of `starts`. Those of one call are at the same step, so on the same subnet.
fn draw(denoiser: &mut dyn Denoiser, range: SigmaRange, starts: &[Start], plan: &Plan) -> Result<Vec<Vec<f64>>> {
    let (plan, elements) = (Arc::new(plan.clone()), denoiser.image().elements());
    let mut images = Vec::with_capacity(starts.len());
    for starts in starts.chunks(BATCH) {
        let class: Vec<Option<usize>> = starts.iter().map(|start| start.class).collect();
        let begin = |start: &Start| Trajectory::new(plan.clone(), range, start.seed, 0, elements);
        let mut trajectories: Vec<Trajectory> = starts.iter().map(begin).collect();
        while let Some(call) = trajectories[0].next_call() {
            let subnet = denoiser.subnets().iter().position(|subnet| subnet.name == call.subnet);
            let subnet = subnet.ok_or_else(|| Error::input("plan", format!("the model has no `{}`", call.subnet)))?;
            let sigma = vec![call.sigma; starts.len()];
            let x: Vec<f32> = trajectories.iter().flat_map(Trajectory::input).map(|&value| value as f32).collect();
            let denoised = denoiser.denoise(subnet, &x, &sigma, &class)?;
            for (trajectory, denoised) in trajectories.iter_mut().zip(denoised.chunks_exact(elements)) {
                trajectory.advance(denoised);
            }
        }
        images.extend(trajectories.iter().map(|trajectory| trajectory.image().to_vec()));
    }
    Ok(images)
}

/// The mean squared distance over all pairs of images that share a class.
fn unrelated(starts: &[Start], images: &[Vec<f64>]) -> f64 {
    let mut classes: Vec<Option<usize>> = starts.iter().map(|start| start.class).collect();
    classes.sort_unstable();
    classes.dedup();
    let (mut sum, mut pairs) = (0.0, 0.0);
    for class in classes {
        let members = || starts.iter().zip(images).filter(|(start, _)| start.class == class).map(|(_, image)| image);
        let count = members().count() as f64;
        let mut mean = vec![0.0; images[0].len()];
        for image in members() {
            mean.iter_mut().zip(image).for_each(|(mean, value)| *mean += value / count);
        }
        // The squared distances of all pairs add up to `count` times those to the mean.
        sum += count * members().map(|image| distance(image, &mean)).sum::<f64>();
        pairs += count * (count - 1.0) / 2.0;
    }
    sum / pairs
}

/// The mean squared difference of two images.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / a.len() as f64
}

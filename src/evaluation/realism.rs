//! How near the images of a plan are to real ones, in the model's own features.

use super::drawing::starts_in_turn;
use super::kept_features::KeptFeatures;
use super::yardstick::Rating;
use crate::diffusion::Plan;
use crate::features::classifier::File;
use crate::features::frechet::Target;
use crate::features::{Classifier, Features, Reference};
use crate::nets::{Denoiser, Threads};
use crate::{ImageShape, Result};
use std::collections::HashMap;
use std::path::Path;

/// Bootstrap samples of a standard error.
const BOOTSTRAP: u64 = 24;

/// Real images, as images are held against them.
#[derive(Debug)]
pub struct RealImages {
    classifier: Classifier,
    reference: Reference,
    target: Target,
}

impl RealImages {
    /// Those of a file of features.
    ///
    /// # Errors
    /// As [`File::open`].
    pub fn open(path: &Path, threads: Threads) -> Result<Self> {
        let file = File::open(path)?;
        let classifier = Classifier::new(&file.layout, &file.weights, threads)?;
        Ok(Self { classifier, target: Target::new(file.reference.gaussian.clone())?, reference: file.reference })
    }

    /// What is known of them.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The features of images uint8 `[n, height, width, channels]`.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for images of another size.
    pub fn features(&mut self, images: &[u8], shape: ImageShape) -> Result<Vec<f32>> {
        self.classifier.of(images, shape)
    }

    /// How good images of these features are, all together. The distance is [`crate::features::frechet::Estimate::limit`], so that
    /// numbers of few images and of many can be compared.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for fewer than four.
    pub fn rate(&self, features: &[f32]) -> Result<Rating> {
        let estimate = self.target.estimate(features, BOOTSTRAP)?;
        let quality = |distance| self.reference.quality(distance);
        // To first order.
        let error = 0.5 * (quality(estimate.limit - estimate.error) - quality(estimate.limit + estimate.error));
        Ok(Rating { distance: estimate.limit, quality: quality(estimate.limit).min(1.0), error })
    }
}

/// Measures plans by the Fréchet distance of their images to real ones. What was drawn of a plan is not drawn again when more of its
/// images are asked for.
#[derive(Debug)]
pub struct Realism {
    real: RealImages,
    /// By plan: the features of its images so far.
    drawn: HashMap<String, KeptFeatures>,
}

impl Realism {
    /// By the features of this file.
    ///
    /// # Errors
    /// As [`RealImages::open`].
    pub fn open(path: &Path, threads: Threads) -> Result<Self> {
        Ok(Self { real: RealImages::open(path, threads)?, drawn: HashMap::new() })
    }

    /// The distances of quality 1 and of quality 0.
    pub fn marks(&self) -> [f64; 2] {
        [self.real.reference.real, self.real.reference.blur]
    }

    /// How good the images of the seeds from 0 are, classes in turn: [`RealImages::rate`].
    ///
    /// # Errors
    /// If the device fails or the model lacks a subnet.
    pub fn rate(&mut self, denoiser: &mut dyn Denoiser, plan: &Plan, images: usize) -> Result<Rating> {
        let starts = starts_in_turn(0, images, denoiser.about().classes.len());
        let Self { real, drawn } = self;
        let kept = drawn.entry(plan.to_string()).or_insert_with(|| KeptFeatures::in_memory(real.target.dim()));
        kept.draw(denoiser, &starts, &plan.clone().into(), &mut real.classifier, |_| {})?;
        real.rate(kept.first(images))
    }

    /// Forgets the images of plans that are not among these.
    pub fn keep_only(&mut self, plans: &[&Plan]) {
        let names: Vec<String> = plans.iter().map(ToString::to_string).collect();
        self.drawn.retain(|plan, _| names.contains(plan));
    }
}

//! Trains the classifier in whose features the quality of a model's images is measured.

use super::batch::{Draw, Shuffle};
use super::config::{Stage, folder};
use super::data::{Dataset, Examples, Source, flip_horizontal, shift};
use super::optimizer::{Adam, Region};
use super::state::{StageName, State};
use super::trainer::{Gradients, initial};
use crate::features::classifier::{Classifier, File, Layout, Until, rounded};
use crate::features::frechet::{Moments, Target};
use crate::features::{Features, Reference};
use crate::files::read_toml;
use crate::nets::on_tape;
use crate::nets::program::{Inputs, Program};
use crate::nets::sliced::Sliced;
use crate::nets::{Model, Threads};
use crate::ops::Tape;
use crate::ops::pixels::to_unit;
use crate::supernet::Supernet;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Images whose features are taken at a time.
const PART: usize = 1024;

/// What `accordion train-features` is described by.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file that it was read from, for messages.
    #[serde(skip)]
    pub path: PathBuf,
    /// Everything random is drawn from this.
    #[serde(default)]
    pub seed: u64,
    /// The images that it learns.
    pub data: Source,
    /// Images that it does not: its accuracy is theirs, and they are what drawn images are held against.
    pub heldout: Source,
    /// The size of the network.
    pub network: Size,
    /// What is done to images while it learns.
    #[serde(default)]
    pub augmentation: Augmentation,
    /// The run.
    pub training: Stage,
}

/// The size of a classifier.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// See [`Layout::channels`].
    pub channels: usize,
    /// See [`Layout::features`].
    pub features: usize,
}

/// What is done to images while a classifier learns.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Each is moved by up to so many pixels.
    pub shift: u32,
    /// Whether half of them are mirrored.
    pub flip: bool,
}

impl Config {
    /// Reads and checks a config. Relative paths in it are taken from its own folder.
    ///
    /// # Errors
    /// One sentence with the file and the field.
    pub fn load(path: &Path) -> Result<Self> {
        let read: Self = read_toml(path)?;
        let at = folder(path);
        let config =
            Self { path: path.to_path_buf(), data: read.data.within(at), heldout: read.heldout.within(at), ..read };
        match config.training.check() {
            Ok(()) => Ok(config),
            Err((field, problem)) => Err(Error::field(path, &format!("training.{field}"), problem)),
        }
    }

    /// The images of a source, labelled with the classes of `model`.
    ///
    /// # Errors
    /// As [`Source::load`], and [`Error::Input`] if they do not fit the model.
    pub fn load_for(&self, source: &Source, model: &Model) -> Result<Dataset> {
        let dataset = source.load()?;
        // A model without classes says nothing of those of the data, which it takes classes to learn.
        let fits = if model.card.classes.is_empty() { Ok(dataset) } else { dataset.for_classes(&model.card.classes) };
        let fits = fits.and_then(|dataset| dataset.check(model.image(), 0).map(|()| dataset));
        fits.map_err(|error| error.in_file(&self.path))
    }

    /// The options of the classifier of these images.
    ///
    /// # Errors
    /// [`Error::Input`] with the field that does not fit.
    pub fn layout(&self, dataset: &Dataset) -> Result<Layout> {
        let shape = dataset.shape;
        if shape.height != shape.width {
            let problem = format!("images are {}x{}, but features are of square ones", shape.height, shape.width);
            return Err(Error::field(&self.path, "data", problem));
        }
        let Size { channels, features } = self.network;
        let classes = dataset.classes.clone();
        let layout = Layout { side: shape.height, image_channels: shape.channels, classes, channels, features };
        layout.check().map_err(|error| error.in_table(&self.path, "network."))?;
        Ok(layout)
    }
}

/// A classifier that is being trained.
pub struct Learner<'a> {
    config: &'a Config,
    dataset: &'a Dataset,
    program: Program,
    shuffle: Shuffle,
    adam: Adam,
    /// What is written to disk.
    pub state: State,
}

impl<'a> Learner<'a> {
    /// A classifier of this layout before its first step, or where `resumed` stands.
    ///
    /// # Errors
    /// As [`State::read`].
    pub fn new(config: &'a Config, dataset: &'a Dataset, layout: &Layout, resumed: Option<&Path>) -> Result<Self> {
        let program = layout.program(Until::Logits);
        let state = match resumed {
            Some(path) => State::read(&program.spec, path)?,
            None => State::begin(StageName::Full, &initial(&program.spec, config.seed)?, &dataset.classes)?,
        };
        let shuffle = Shuffle::new(dataset.len(), config.seed);
        Ok(Self { config, dataset, program, shuffle, adam: Adam::default(), state })
    }

    /// Its network, logits included.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Whether it has seen all its images.
    pub fn is_finished(&self) -> bool {
        self.state.position.seen >= self.config.training.images
    }

    /// Images `[batch, H, W, C]` and labels of the step at `position`.
    fn batch(&mut self, position: u64) -> (Vec<f32>, Vec<usize>) {
        let (seed, shape) = (self.config.seed, self.dataset.shape);
        let Augmentation { shift: most, flip } = self.config.augmentation;
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for key in position..position + self.config.training.batch as u64 {
            let index = self.shuffle.at(key);
            let stream = Draw::Shift.at(seed, key);
            let by = [0, 1].map(|axis| stream.below(axis, 2 * most + 1) as isize - most as isize);
            let mut image = shift(self.dataset.image(index), shape, by);
            if flip && Draw::Flip.at(seed, key).uniform(0) < 0.5 {
                image = flip_horizontal(&image, shape);
            }
            images.extend(image.into_iter().map(to_unit));
            labels.push(self.dataset.label(index));
        }
        (images, labels)
    }

    /// One step of the optimiser on the cross-entropy, whose mean over the batch is returned.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the loss or its gradient is not; the state is then that before the step.
    pub fn step(&mut self) -> Result<f64> {
        let seen = self.state.position.seen;
        let (images, labels) = self.batch(seen);
        let spec = &self.program.spec;
        let weights = Sliced::new(spec, &self.state.supernet(spec, false)?, &spec.full())?;
        let tape = Tape::recording(weights.leaves());
        let image = self.program.image;
        let shape = (labels.len(), image.height, image.width, image.channels);
        let images = Tensor::from_vec(images, shape, &Device::Cpu)?;
        let logits = on_tape::forward(&self.program, &tape, &weights, &images, Inputs::NONE)?;
        let mut values = logits.flatten_all()?.to_vec1::<f32>()?;
        let loss = cross_entropy(&mut values, &labels);
        let gradient = Tensor::from_vec(values, logits.shape(), &Device::Cpu)?;
        let gradients = Gradients::of(&tape.backward(&logits, gradient)?, &weights)?;
        let regions: Vec<Region> = spec.params.iter().map(|param| Region::whole(&param.shape)).collect();
        let norm = self.adam.step(&mut self.state.slots, &regions, &gradients.values, &self.config.training, seen);
        if !(loss.is_finite() && norm.is_finite()) {
            return Err(Error::NotFinite {
                place: format!("features, after {seen} images"),
                problem: format!("the loss is {loss}; a lower training.learning_rate may help"),
            });
        }
        self.state.position.seen += labels.len() as u64;
        Ok(loss)
    }
}

/// The mean over samples of `-log softmax(logits)[label]`; `logits`, `[n, classes]`, become its gradient.
fn cross_entropy(logits: &mut [f32], labels: &[usize]) -> f64 {
    let (samples, classes) = (labels.len(), logits.len() / labels.len());
    let mut loss = 0.0;
    for (logits, &label) in logits.chunks_exact_mut(classes).zip(labels) {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let right = f64::from(logits[label] - most);
        logits.iter_mut().for_each(|logit| *logit = (*logit - most).exp());
        let sum: f32 = logits.iter().sum();
        loss += f64::from(sum).ln() - right;
        logits.iter_mut().for_each(|logit| *logit /= sum * samples as f32);
        logits[label] -= 1.0 / samples as f32;
    }
    loss / samples as f64
}

/// The classifier of trained weights, with its accuracy and the features of `heldout`. `progress` hears how many of the images have been looked at.
///
/// # Errors
/// [`Error::Tensor`] on a device fault; if images of either are fewer than four.
pub fn finished(
    layout: Layout,
    weights: Supernet,
    dataset: &Dataset,
    heldout: &Dataset,
    mut progress: impl FnMut(usize),
) -> Result<File> {
    let weights = rounded(weights)?;
    let mut classifier = Classifier::new(&layout, &weights, Threads::ALL)?;
    let (dim, elements, mut looked_at) = (layout.features, dataset.shape.elements(), 0);
    let mut features = |classifier: &mut Classifier, images: &[u8]| -> Result<Vec<f32>> {
        let mut features = Vec::with_capacity(images.len() / elements * dim);
        for part in images.chunks(PART * elements) {
            features.extend(classifier.of(part, dataset.shape)?);
            looked_at += part.len() / elements;
            progress(looked_at);
        }
        Ok(features)
    };
    let moments = |features: &[f32]| {
        let mut moments = Moments::new(dim);
        moments.add(features);
        moments.gaussian()
    };
    let of_heldout = features(&mut classifier, &heldout.images)?;
    // As many of the images that it has learnt, in their order.
    let others = features(&mut classifier, &dataset.images[..heldout.len().min(dataset.len()) * elements])?;
    let found = classifier.classes(&of_heldout).into_iter().enumerate();
    let known = found.filter(|&(index, class)| class == heldout.label(index)).count();
    let mut blurred = Vec::new();
    for (mean, &count) in class_means(dataset).chunks_exact(elements).zip(&dataset.counts()) {
        let features = classifier.of(mean, dataset.shape)?;
        // In the shares that the data has: 1,000 images are enough to tell them.
        (0..(1000 * count).div_ceil(dataset.len())).for_each(|_| blurred.extend_from_slice(&features));
    }
    let gaussian = moments(&of_heldout)?;
    let target = Target::new(gaussian.clone())?;
    let [_, real] = target.distance_and_limit(&others)?;
    let blur = target.distance(&moments(&blurred)?)?;
    let reference = Reference { real, blur, images: heldout.len(), gaussian };
    Ok(File { layout, weights, accuracy: known as f64 / heldout.len() as f64, reference })
}

/// The mean image of each class, `[classes, H, W, C]`.
fn class_means(dataset: &Dataset) -> Vec<u8> {
    let (elements, counts) = (dataset.shape.elements(), dataset.counts());
    let mut sums = vec![0u64; counts.len() * elements];
    for index in 0..dataset.len() {
        let sum = &mut sums[dataset.label(index) * elements..][..elements];
        sum.iter_mut().zip(dataset.image(index)).for_each(|(sum, &byte)| *sum += u64::from(byte));
    }
    let means = sums.chunks_exact(elements).zip(&counts);
    means.flat_map(|(sum, &count)| sum.iter().map(move |sum| (sum / count.max(1) as u64) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_of_the_cross_entropy_is_that_of_differences() {
        let logits = [0.5f32, -1.0, 2.0, 0.1, 0.2, -0.3];
        let labels = [2, 0];
        let mut gradient = logits;
        let loss = cross_entropy(&mut gradient, &labels);
        let probability = |row: &[f32], label: usize| {
            f64::from(row[label]).exp() / row.iter().map(|value| f64::from(*value).exp()).sum::<f64>()
        };
        let want = -(probability(&logits[..3], 2).ln() + probability(&logits[3..], 0).ln()) / 2.0;
        assert!((loss - want).abs() < 1e-6, "{loss} is not {want}");
        for (place, gradient) in gradient.iter().enumerate() {
            let at = |by: f32| {
                let mut moved = logits;
                moved[place] += by;
                cross_entropy(&mut moved, &labels)
            };
            let want = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((f64::from(*gradient) - want).abs() < 1e-4, "{place}: {gradient} is not {want}");
        }
    }
}

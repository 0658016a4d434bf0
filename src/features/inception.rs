//! The features of the Frechet Inception distance.

use super::Features;
use super::bilinear::Bilinear;
use crate::nets::inception::{SIDE, Tap, program, weights};
use crate::nets::{Runner, Threads};
use crate::ops::cpu::fused::Layer;
use crate::ops::cpu::fused::rows::Row;
use crate::{Error, ImageShape, Result, checkpoint};
use std::path::Path;
use std::sync::Arc;

/// Images of a call, at most: enough to share out each reading of the weights.
const BATCH: usize = 16;

/// The FID Inception's features of an image, 2048 of them: the means over the pixels of its last block. Images are
/// resized to 299x299 bilinearly, as pytorch-fid does it.
#[derive(Debug)]
pub struct Inception {
    runner: Runner,
    tap: Tap,
}

impl Inception {
    /// The network of a checkpoint in PyTorch's format or in safetensors, under the names of pytorch-fid and
    /// torchvision. What else is in the file, such as a classifier, is passed over.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that is no checkpoint, or with the names of tensors that are missing, of another
    /// shape, no floats or not finite; [`Error::Io`] if it cannot be read.
    pub fn open(path: &Path, threads: Threads) -> Result<Self> {
        Self::open_at(path, Tap::Mixed7c, threads)
    }

    /// The same with the features of an earlier layer, which are fewer.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_at(path: &Path, tap: Tap, threads: Threads) -> Result<Self> {
        let checkpoint = checkpoint::open(path)?;
        let program = program(tap);
        let parts = checkpoint.parts.iter().flat_map(|part| part.tensors.unwrapped());
        let nearest = parts.max_by_key(|tensors| crate::nets::public::matches(&program.spec, tensors));
        let weights = weights(&program, &nearest.expect("a checkpoint has tensors"))?;
        Ok(Self { runner: Runner::new(Arc::new(program), &weights, threads)?, tap })
    }

    /// The layers of a call on these images.
    ///
    /// # Errors
    /// As [`Features::of`].
    pub fn recorded(&mut self, images: &[u8], shape: ImageShape) -> Result<Vec<Layer>> {
        let resize = resized_by(shape)?;
        Ok(self.runner.recorded(images.len() / shape.elements(), resized(&resize, images)).1)
    }
}

/// What makes images of this size the network's.
fn resized_by(shape: ImageShape) -> Result<Bilinear> {
    let ImageShape { height, width, channels } = shape;
    if !matches!(channels, 1 | 3) || height == 0 || width == 0 {
        let problem = format!("{height}x{width} of {channels} channels is no image of 1 or 3 channels");
        return Err(Error::input("images", problem));
    }
    Ok(Bilinear::new(shape, SIDE))
}

/// The rows of these images, resized.
fn resized(resize: &Bilinear, images: &[u8]) -> impl Fn(Row) + Sync {
    let elements = resize.from().elements();
    move |Row { sample, row, pixels, pitch }| resize.row(&images[sample * elements..][..elements], row, pixels, pitch)
}

impl Features for Inception {
    fn dim(&self) -> usize {
        self.tap.dim()
    }

    fn of(&mut self, images: &[u8], shape: ImageShape) -> Result<Vec<f32>> {
        let resize = resized_by(shape)?;
        let batches = images.chunks(BATCH * shape.elements());
        let features = |batch: &[u8]| self.runner.run_rows(batch.len() / shape.elements(), resized(&resize, batch));
        Ok(batches.flat_map(features).collect())
    }
}

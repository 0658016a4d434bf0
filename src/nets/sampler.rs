//! The images that are being drawn, where the denoiser keeps its memory.

use super::{About, Condition, Decoder, Denoiser, Rows};
use crate::ImageShape;
use crate::diffusion::{Level, Noise, State, Update, guide};
use crate::ops::pixels::byte;
use crate::philox::NoiseKey;
use crate::{Error, Result};

/// Names an image that a sampler holds, from [`Sampler::begin`] to [`Sampler::end`]; then the number may serve again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(pub usize);

/// Classifier-free guidance of a step: the image has a second row in the call.
#[derive(Clone, Debug, PartialEq)]
pub struct Guide {
    /// Its scale.
    pub scale: f64,
    /// What the image is led away from: nothing, or what a negative prompt says.
    pub from: Condition,
}

/// What one image does in a [`Sampler::step`].
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// The image; each is in a step once at most.
    pub slot: Slot,
    /// The noise level of the call: the one that [`Sampler::begin`] or the move before announced.
    pub level: Level,
    /// What the image is of.
    pub condition: Condition,
    /// What leads it, if anything does.
    pub guide: Option<Guide>,
    /// What the denoised image does to the arrays.
    pub update: Update,
    /// The noise level of the image's next call, whose input a device may scale in the same pass; `None` when the image
    /// is drawn.
    pub next: Option<Level>,
    /// Whether [`Sampler::estimate`] may be asked after this step.
    pub watched: bool,
}

impl Move {
    /// Samples that the image adds to the call.
    pub fn rows(&self) -> usize {
        self.conditions().count()
    }

    /// What the rows are of.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        [Some(&self.condition), self.guide.as_ref().map(|guide| &guide.from)].into_iter().flatten()
    }
}

/// A denoiser that also holds the images that are being drawn and makes their solver steps, where it keeps its memory:
/// what the engine runs.
///
/// Subnets, classes and slots are the caller's contract: a sampler may panic where they do not exist. After a step that
/// failed or panicked, only the images that were in it are lost; their slots have to be ended all the same.
pub trait Sampler: Send {
    /// What there is to know of it.
    fn about(&self) -> &About;

    /// Memory in its buffers of activations.
    fn activation_bytes(&self) -> usize;

    /// Begins an image: x is the sum of `noise` of `key` ([`crate::diffusion::Course::begin`]), m is 0. `sigma` is the
    /// noise level of its first call, `canvas` the index of its size in [`About::canvases`].
    ///
    /// # Errors
    /// On a device fault, or where there is no memory for another image; then nothing was begun.
    fn begin(&mut self, key: NoiseKey, noise: [Noise; 2], sigma: f64, canvas: usize) -> Result<Slot>;

    /// One call of the denoiser on the rows of these images, all of one size, then a solver step of each.
    ///
    /// # Errors
    /// On a device fault, and where a denoised image is not finite.
    fn step(&mut self, subnet: usize, moves: &[Move]) -> Result<()>;

    /// The image so far, x, decoded where it is a latent: bytes `[height, width, channels]` row-major, `127.5 x + 127.5` rounded and
    /// clamped.
    ///
    /// # Errors
    /// On a device fault.
    fn pixels(&mut self, slot: Slot) -> Result<Vec<u8>>;

    /// The denoised image, guided where the move was, that the slot's last step used, in the form of [`Self::pixels`]; of a latent only
    /// about what it looks like. That step was [`Move::watched`].
    ///
    /// # Errors
    /// On a device fault.
    fn estimate(&mut self, slot: Slot) -> Result<Vec<u8>>;

    /// Forgets the image.
    fn end(&mut self, slot: Slot);

    /// Whether it will never work again, as a GPU does not after most of its faults until its process ends.
    fn is_lost(&self) -> bool {
        false
    }
}

/// The [`Sampler`] of a denoiser in the host's memory.
pub struct HostSampler {
    denoiser: Box<dyn Denoiser>,
    /// What makes pictures of latents.
    decoder: Option<Decoder>,
    /// By the number of the slot; `None` is free.
    images: Vec<Option<Image>>,
}

/// An image that is being drawn.
struct Image {
    key: NoiseKey,
    /// The size of what is denoised.
    size: ImageShape,
    state: State,
    /// What the denoiser said last, where it was watched.
    estimate: Option<Vec<f32>>,
}

impl HostSampler {
    /// A sampler without images.
    pub fn new(denoiser: Box<dyn Denoiser>) -> Self {
        Self { denoiser, decoder: None, images: Vec::new() }
    }

    /// The same for a denoiser of latents.
    pub fn with_decoder(self, decoder: Option<Decoder>) -> Self {
        Self { decoder, ..self }
    }

    fn held(&mut self, slot: Slot) -> &mut Image {
        self.images[slot.0].as_mut().expect("a slot that has begun and has not ended")
    }
}

impl Sampler for HostSampler {
    fn about(&self) -> &About {
        self.denoiser.about()
    }

    fn activation_bytes(&self) -> usize {
        self.denoiser.activation_bytes() + self.decoder.as_ref().map_or(0, Decoder::activation_bytes)
    }

    fn begin(&mut self, key: NoiseKey, noise: [Noise; 2], _sigma: f64, canvas: usize) -> Result<Slot> {
        let size = self.about().canvases[canvas].state;
        let image = Image { key, size, state: State::new(size.elements(), noise, key), estimate: None };
        let free = self.images.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.images.push(None);
            self.images.len() - 1
        });
        self.images[slot] = Some(image);
        Ok(Slot(slot))
    }

    fn step(&mut self, subnet: usize, moves: &[Move]) -> Result<()> {
        let Some(image) = moves.first().map(|step| self.held(step.slot).size) else { return Ok(()) };
        let (elements, rows) = (image.elements(), moves.iter().map(Move::rows).sum());
        let mut x = Vec::with_capacity(rows * elements);
        let (mut levels, mut conditions) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for step in moves {
            let held = self.held(step.slot);
            assert_eq!(held.size, image, "the size of all images of a step");
            for condition in step.conditions() {
                x.extend(held.state.x().iter().map(|&value| value as f32));
                levels.push(step.level);
                conditions.push(condition.clone());
            }
        }
        let rows = Rows { image, x: &x, levels: &levels, conditions: &conditions };
        let denoised = self.denoiser.denoise(subnet, &rows)?;
        if denoised.len() != x.len() {
            return Err(Error::Denoiser(format!("it returned {} values for {}", denoised.len(), x.len())));
        }
        if !denoised.iter().all(|value| value.is_finite()) {
            return Err(Error::Denoiser("it returned values that are not finite".to_owned()));
        }
        let mut rest = &denoised[..];
        for step in moves {
            let (rows, others) = rest.split_at(step.rows() * elements);
            rest = others;
            let guided = step.guide.as_ref().map(|by| guide(&rows[..elements], &rows[elements..], by.scale));
            let estimate = guided.as_deref().unwrap_or(rows);
            let Image { key, state, estimate: kept, .. } = self.held(step.slot);
            state.apply(&step.update, estimate, *key);
            *kept = step.watched.then(|| estimate.to_vec());
        }
        Ok(())
    }

    fn pixels(&mut self, slot: Slot) -> Result<Vec<u8>> {
        let image = self.images[slot.0].as_ref().expect("a slot that has begun and has not ended");
        match &mut self.decoder {
            Some(decoder) => decoder.pixels(image.size, image.state.x()),
            None => Ok(image.state.x().iter().map(|&value| byte(value)).collect()),
        }
    }

    fn estimate(&mut self, slot: Slot) -> Result<Vec<u8>> {
        let image = self.images[slot.0].as_ref().expect("a slot that has begun and has not ended");
        let estimate = image.estimate.as_ref().expect("a step that was watched");
        Ok(match &self.decoder {
            Some(decoder) => decoder.preview().picture(image.size, estimate),
            None => estimate.iter().map(|&value| byte(f64::from(value))).collect(),
        })
    }

    fn end(&mut self, slot: Slot) {
        self.images[slot.0] = None;
    }
}

#[cfg(test)]
mod tests;

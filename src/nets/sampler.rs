//! The images that are being drawn, where the denoiser keeps its memory.

use super::rows::drawn_anew;
use super::{About, Codec, Condition, Denoiser, Rows};
use crate::ImageShape;
use crate::diffusion::{Course, Level, Noise, State, Update, guide};
use crate::ops::pixels::byte;
use crate::philox::NoiseKey;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Names an image that a sampler holds, from [`Sampler::begin`] to [`Sampler::end`]; then the number may serve again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(pub usize);

/// What an image is made from beside noise; nothing for one that is drawn from noise alone. All of it has the size of what is denoised.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// The picture that it starts from, `[height, width, channels]` as [`Sampler::encode`] makes it.
    pub start: Option<Arc<[f32]>>,
    /// What is put back after every step.
    pub known: Option<Known>,
    /// What a network for inpainting is given beside the image; see [`Rows::beside`].
    pub beside: Option<Arc<[f32]>>,
}

/// A picture of which a part is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// As [`Source::start`].
    pub picture: Arc<[f32]>,
    /// By pixel, whether it is drawn anew.
    pub mask: Arc<[bool]>,
}

/// How an image begins.
#[derive(Clone, Copy, Debug)]
pub struct Begin<'a> {
    /// Whose noise it is.
    pub key: NoiseKey,
    /// That of [`crate::diffusion::Course::begin`].
    pub noise: [Noise; 2],
    /// The noise level of its first call.
    pub sigma: f64,
    /// The index of its size in [`About::canvases`].
    pub canvas: usize,
    /// What it is made from.
    pub source: &'a Source,
}

impl Begin<'static> {
    /// From noise alone, of the usual size, on this course.
    ///
    /// # Panics
    /// If the course is finished.
    pub fn new(key: NoiseKey, course: &Course) -> Self {
        static NOTHING: Source = Source { start: None, known: None, beside: None };
        let sigma = course.next_call().expect("a course has a step").level.sigma;
        Self { key, noise: course.begin(), sigma, canvas: 0, source: &NOTHING }
    }
}

/// Guidance of a step: the image has a second row, in the call or in one of another subnet.
#[derive(Clone, Debug, PartialEq)]
pub struct Guide {
    /// Its scale.
    pub scale: f64,
    /// What the image is led away from: nothing, or what a negative prompt says (classifier-free guidance); or what it is of itself, as a
    /// narrower subnet sees it (autoguidance).
    pub from: Condition,
    /// The subnet of that row.
    pub subnet: usize,
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
    /// Samples that the image adds to the calls of a step.
    pub fn rows(&self) -> usize {
        1 + usize::from(self.guide.is_some())
    }

    /// What its rows in a call of this subnet are of, which is the step's own or that of its guide.
    fn rows_in(&self, subnet: usize, own: usize) -> impl Iterator<Item = &Condition> {
        let first = (subnet == own).then_some(&self.condition);
        let second = self.guide.as_ref().filter(|guide| guide.subnet == subnet).map(|guide| &guide.from);
        [first, second].into_iter().flatten()
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

    /// What is denoised of a picture of the size `canvas`, `[height, width, channels]` row-major in [-1, 1]: itself, or its latent.
    ///
    /// # Errors
    /// On a device fault, and where a latent is not finite.
    fn encode(&mut self, canvas: usize, picture: &[f32]) -> Result<Vec<f32>>;

    /// Begins an image: x is the picture that it starts from, if it does, and the sum of the noise; m is 0.
    ///
    /// # Errors
    /// On a device fault, or where there is no memory for another image; then nothing was begun.
    fn begin(&mut self, begin: &Begin) -> Result<Slot>;

    /// One call of the denoiser on the rows of these images, all of one size, and one on those of guides for each other subnet; then a
    /// solver step of each; at last what is known of an
    /// image is put back, at the level of its next call.
    ///
    /// # Errors
    /// On a device fault, and where a denoised image is not finite.
    fn step(&mut self, subnet: usize, moves: &[Move]) -> Result<()>;

    /// The image so far, x, decoded where it is a latent, by the subnet of the decoder of this index: bytes `[height, width, channels]`
    /// row-major, `127.5 x + 127.5` rounded and clamped.
    ///
    /// # Errors
    /// On a device fault.
    fn pixels(&mut self, slot: Slot, decoder: usize) -> Result<Vec<u8>>;

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
    /// Between pictures and latents.
    codec: Option<Codec>,
    /// By the number of the slot; `None` is free.
    images: Vec<Option<Image>>,
}

/// An image that is being drawn.
struct Image {
    key: NoiseKey,
    /// The size of what is denoised.
    size: ImageShape,
    state: State,
    source: Source,
    /// What the denoiser said last, where it was watched.
    estimate: Option<Vec<f32>>,
}

impl HostSampler {
    /// A sampler without images.
    pub fn new(denoiser: Box<dyn Denoiser>) -> Self {
        Self { denoiser, codec: None, images: Vec::new() }
    }

    /// The same for a denoiser of latents.
    pub fn with_codec(self, codec: Option<Codec>) -> Self {
        Self { codec, ..self }
    }

    /// The denoised rows of these images in the call of this subnet, where the step's own is `own`.
    fn call(&mut self, subnet: usize, own: usize, image: ImageShape, moves: &[Move]) -> Result<Vec<f32>> {
        let (mut x, mut levels, mut conditions, mut beside) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for step in moves {
            let held = self.held(step.slot);
            assert_eq!(held.size, image, "the size of all images of a step");
            for condition in step.rows_in(subnet, own) {
                x.extend(held.state.x().iter().map(|&value| value as f32));
                beside.extend_from_slice(held.source.beside.as_deref().unwrap_or_default());
                levels.push(step.level);
                conditions.push(condition.clone());
            }
        }
        let rows = Rows { image, x: &x, beside: &beside, levels: &levels, conditions: &conditions };
        let denoised = self.denoiser.denoise(subnet, &rows)?;
        if denoised.len() != x.len() {
            return Err(Error::Denoiser(format!("it returned {} values for {}", denoised.len(), x.len())));
        }
        match denoised.iter().all(|value| value.is_finite()) {
            true => Ok(denoised),
            false => Err(Error::Denoiser("it returned values that are not finite".to_owned())),
        }
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
        self.denoiser.activation_bytes() + self.codec.as_ref().map_or(0, Codec::activation_bytes)
    }

    fn encode(&mut self, canvas: usize, picture: &[f32]) -> Result<Vec<f32>> {
        let size = self.about().canvases[canvas].picture;
        match &mut self.codec {
            Some(codec) => codec.latent(size, picture),
            None => Ok(picture.to_vec()),
        }
    }

    fn begin(&mut self, begin: &Begin) -> Result<Slot> {
        let &Begin { key, noise, canvas, source, .. } = begin;
        let size = self.about().canvases[canvas].state;
        let mut state = State::new(size.elements(), noise, key);
        if let Some(picture) = &source.start {
            state.add_picture(picture);
        }
        let mut source = source.clone();
        if self.about().inpaints && source.beside.is_none() {
            let pixel = (0..=size.channels).map(drawn_anew);
            source.beside = Some((0..size.height * size.width).flat_map(|_| pixel.clone()).collect());
        }
        let image = Image { key, size, state, source, estimate: None };
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
        let guides = moves.iter().filter_map(|step| step.guide.as_ref());
        let others: BTreeSet<usize> = guides.map(|guide| guide.subnet).filter(|&guide| guide != subnet).collect();
        // By move and row, each in the call that it is in.
        let mut denoised: Vec<Vec<f32>> = vec![Vec::new(); moves.len()];
        for called in [subnet].into_iter().chain(others) {
            let rows = self.call(called, subnet, image, moves)?;
            let mut rest = rows.chunks_exact(image.elements());
            for (step, denoised) in moves.iter().zip(&mut denoised) {
                step.rows_in(called, subnet).for_each(|_| denoised.extend_from_slice(rest.next().expect("a row")));
            }
        }
        let elements = image.elements();
        for (step, rows) in moves.iter().zip(&denoised) {
            let guided = step.guide.as_ref().map(|by| guide(&rows[..elements], &rows[elements..], by.scale));
            let estimate = guided.as_deref().unwrap_or(rows);
            let Image { key, state, source, estimate: kept, .. } = self.held(step.slot);
            state.apply(&step.update, estimate, *key);
            if let Some(Known { picture, mask }) = &source.known {
                state.put_back(picture, mask, step.next.map_or(0.0, |level| level.sigma), *key);
            }
            *kept = step.watched.then(|| estimate.to_vec());
        }
        Ok(())
    }

    fn pixels(&mut self, slot: Slot, decoder: usize) -> Result<Vec<u8>> {
        let image = self.images[slot.0].as_ref().expect("a slot that has begun and has not ended");
        match &mut self.codec {
            Some(codec) => codec.pixels(decoder, image.size, image.state.x()),
            None => Ok(image.state.x().iter().map(|&value| byte(value)).collect()),
        }
    }

    fn estimate(&mut self, slot: Slot) -> Result<Vec<u8>> {
        let image = self.images[slot.0].as_ref().expect("a slot that has begun and has not ended");
        let estimate = image.estimate.as_ref().expect("a step that was watched");
        Ok(match &self.codec {
            Some(codec) => codec.preview().picture(image.size, estimate),
            None => estimate.iter().map(|&value| byte(f64::from(value))).collect(),
        })
    }

    fn end(&mut self, slot: Slot) {
        self.images[slot.0] = None;
    }
}

#[cfg(test)]
mod tests;

//! What images are made from, in the terms of what is denoised.

use super::device::Device;
use super::job::Job;
use super::original::Original;
use crate::nets::{About, Canvas, Known, Source};
use crate::ops::pixels::to_unit;
use std::sync::Arc;

/// How many pictures are encoded for a job, by the network that it is for.
pub(super) fn encodings(about: &About, job: &Job) -> usize {
    match (&job.original, about.inpaints) {
        (None, _) => 0,
        (Some(_), false) => 1,
        // What is known of the picture, and all of it where it is started from.
        (Some(_), true) => 1 + usize::from(job.strength < 1.0),
    }
}

/// What the images of a job are made from.
///
/// A network for inpainting is told what is known, and nothing is put back (as diffusers has both).
///
/// # Errors
/// On a device fault, and where a latent is not finite.
pub(super) fn source(about: &About, job: &Job, device: &mut Device) -> Result<Source, String> {
    let Some(original) = &job.original else { return Ok(Source::default()) };
    let canvas = about.canvases[job.canvas];
    let picture: Vec<f32> = original.bytes.iter().copied().map(to_unit).collect();
    let mask = original.mask.as_deref().map(|mask| of_state(canvas, mask));
    let starts = job.strength < 1.0;
    let mut encode = |picture: &[f32]| device.encode(job.canvas, picture).map(Arc::<[f32]>::from);
    if !about.inpaints {
        let picture = encode(&picture)?;
        let known = mask.map(|mask| Known { picture: picture.clone(), mask: mask.into() });
        return Ok(Source { start: starts.then_some(picture), known, beside: None });
    }
    let beside = beside(canvas, &encode(&known_of(original, &picture))?, mask.as_deref());
    let start = starts.then(|| encode(&picture)).transpose()?;
    Ok(Source { start, known: None, beside: Some(beside.into()) })
}

/// A mask of a picture at the size of what is denoised: at each pixel what it is at the first of those that the pixel stands for
/// (`torch.nn.functional.interpolate`, nearest).
fn of_state(Canvas { picture, state }: Canvas, mask: &[bool]) -> Vec<bool> {
    let at = |row: usize, column: usize| (row * picture.height / state.height, column * picture.width / state.width);
    let pixels = (0..state.height).flat_map(|row| (0..state.width).map(move |column| at(row, column)));
    pixels.map(|(row, column)| mask[row * picture.width + column]).collect()
}

/// A picture with zeros where it is drawn anew.
fn known_of(original: &Original, picture: &[f32]) -> Vec<f32> {
    let Some(mask) = &original.mask else { return vec![0.0; picture.len()] };
    let pixels = picture.chunks_exact(picture.len() / mask.len()).zip(mask);
    pixels.flat_map(|(pixel, &is_new)| pixel.iter().map(move |&value| if is_new { 0.0 } else { value })).collect()
}

/// What [`crate::nets::Rows::beside`] is for a mask, and what is known.
fn beside(Canvas { state, .. }: Canvas, known: &[f32], mask: Option<&[bool]>) -> Vec<f32> {
    let is_new = |pixel: usize| mask.is_none_or(|mask| mask[pixel]);
    let pixels = known.chunks_exact(state.channels).enumerate();
    pixels.flat_map(|(at, known)| [f32::from(is_new(at))].into_iter().chain(known.iter().copied())).collect()
}

/// Puts the bytes of the original back where it was not drawn anew.
pub(super) fn restore(original: &Original, bytes: &mut [u8]) {
    let Some(mask) = &original.mask else { return };
    let channels = bytes.len() / mask.len();
    let pixels = bytes.chunks_exact_mut(channels).zip(original.bytes.chunks_exact(channels)).zip(mask);
    for ((drawn, known), _) in pixels.filter(|(_, is_new)| !**is_new) {
        drawn.copy_from_slice(known);
    }
}

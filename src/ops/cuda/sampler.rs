//! A solver's step in one pass (`kernels/sampler.cuh`).

use super::{Cost, Launch, Precision};
use crate::ImageShape;
use bytemuck::{NoUninit, Pod, Zeroable};

/// Channels from pixel to pixel of the network's output, and of an input without more beside the image.
pub const PITCH: usize = 8;
/// Channels that an image may have: grey, colours, latents.
pub const CHANNELS: [usize; 3] = [1, 3, 4];
const THREADS: usize = 128;
/// Pixels of a thread.
const PIXELS: usize = 4;

/// What is done to one image: see the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Row {
    /// The image: f32, [`state_bytes`]; 0 for a row that is skipped.
    pub x: u64,
    /// What its solver remembers, and what that was one and two changes before; like `x`. Each is read where its weight is not 0.
    pub memory: [u64; 3],
    /// Takes the new memory: like `x`, perhaps one of the old ones; or 0, where it stays.
    pub newest: u64,
    /// Takes the denoised image; like `x`, or 0.
    pub estimate: u64,
    /// Takes the network's next input: elements `[pixels, pitch]` of [`input_bytes`]; or 0.
    pub input: u64,
    /// A picture that is put back where it is known; like `x`, or 0.
    pub known: u64,
    /// u32 by pixel: 0 where it is known.
    pub mask: u64,
    /// What the network is given beside the image: f32, [`beside_bytes`].
    pub beside: u64,
    /// The denoised image of another call that this one is led away from; like `x`, or 0.
    pub led: u64,
    /// Of its noise.
    pub seed: u64,
    /// Of its noise.
    pub image: u32,
    /// Of its noise.
    pub draw: u32,
    /// The row of the network's output with the image's class.
    pub conditional: u32,
    /// The row without; the same if there is no guidance.
    pub unconditional: u32,
    /// The scale of guidance, where there is some.
    pub guidance: f32,
    /// Share of `x` in the denoised image.
    pub c_skip: f32,
    /// Scale of the network's output in it.
    pub c_out: f32,
    /// Of the new image: share of the old one,
    pub a_x: f32,
    /// of the denoised one,
    pub a_d: f32,
    /// of the memories,
    pub a_m: [f32; 3],
    /// and of the noise.
    pub noise: f32,
    /// Of the new memory: share of the old image,
    pub b_x: f32,
    /// of the denoised one,
    pub b_d: f32,
    /// and of the memory.
    pub b_m: f32,
    /// Scale of the next input.
    pub c_in: f32,
    /// The noise level of what is put back.
    pub level: f32,
}

/// Bytes of an image's state: f32 for whole groups of four pixels.
pub fn state_bytes(image: ImageShape) -> usize {
    (image.height * image.width).next_multiple_of(16) * image.channels * 4
}

/// Bytes of an image's input to a network that is given so many channels `beside` it.
pub fn input_bytes(precision: Precision, image: ImageShape, beside: usize) -> usize {
    let pitch = (image.channels + beside).next_multiple_of(PITCH);
    (image.height * image.width).next_multiple_of(16) * pitch * precision.bytes()
}

/// Bytes of a mask.
pub fn mask_bytes(image: ImageShape) -> usize {
    (image.height * image.width).next_multiple_of(16) * 4
}

/// Bytes of so many channels `beside` an image.
pub fn beside_bytes(image: ImageShape, beside: usize) -> usize {
    image.height * image.width * beside * 4
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Args {
    rows: u64,
    output: u64,
    faults: u64,
    pixels: u32,
    channels: u32,
    beside: u32,
    padding: u32,
}

/// Does what `count` [`Row`]s at address `rows` say, with the network's output `[samples, pixels, PITCH]`, or without one. An image
/// whose denoised image is not finite gets a 1 in `faults`, u32 by row. The network is given so many channels `beside` the image.
///
/// # Panics
/// For an image whose channels are not among [`CHANNELS`].
pub fn sampler(
    precision: Precision,
    image: ImageShape,
    beside: usize,
    rows: u64,
    count: usize,
    output: Option<u64>,
    faults: u64,
) -> Launch {
    assert!(CHANNELS.contains(&image.channels), "channels of an image");
    let pixels = image.height * image.width;
    let [pixels_of, channels, beside] = [pixels, image.channels, beside].map(|count| count as u32);
    let output_at = output.unwrap_or(0);
    let args = Args { rows, output: output_at, faults, pixels: pixels_of, channels, beside, padding: 0 };
    // The image and the memory are read and written, the output is read and the input written.
    let maps = pixels * PITCH * precision.bytes() * if output.is_some() { 2 } else { 1 };
    let cost = Cost { bytes: (count * (4 * image.elements() * 4 + maps)) as u64, operations: 0 };
    // c_in x; c_skip x, c_out F and their sum; three terms of DPM-Solver++(2M) and their two sums. Guidance would be three more,
    // noise three.
    let op_by_op = if output.is_some() { 9 } else { 2 };
    Launch::new("sampler", Some(precision), [pixels.div_ceil(THREADS * PIXELS), count, 1], &args, cost, op_by_op)
}

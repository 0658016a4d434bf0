//! From values in [-1, 1] to bytes (`kernels/pixels.cuh`).

use super::{Cost, Launch};
use crate::ImageShape;
use bytemuck::NoUninit;

const THREADS: usize = 128;
/// Elements of a thread.
const ELEMENTS: usize = 16;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Args {
    x: u64,
    y: u64,
    elements: u32,
    padding: u32,
}

/// Bytes that [`pixels`] writes: whole sixteens of them.
pub fn bytes(image: ImageShape) -> usize {
    image.elements().next_multiple_of(ELEMENTS)
}

/// The bytes of a state of [`super::sampler`]: `127.5 x + 127.5`, rounded and clamped, `[height, width, channels]`.
pub fn pixels(image: ImageShape, x: u64, y: u64) -> Launch {
    let elements = image.elements();
    let args = Args { x, y, elements: elements as u32, padding: 0 };
    let cost = Cost { bytes: (elements * 5) as u64, operations: 0 };
    // Scale, shift, clamp, conversion: candle rounds towards zero, so that a half is part of the shift.
    Launch::new("pixels", None, [elements.div_ceil(THREADS * ELEMENTS), 1, 1], &args, cost, 4)
}

//! Sines and cosines of the noise level, a row for the class, or both (`kernels/embedding.cuh`).

use super::{Cost, Element, Launch, Map};
use bytemuck::NoUninit;

/// What the embedding is made of, by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedding {
    /// f32 by sample: c_noise.
    pub noise: u64,
    /// u32 by sample: a row of `labels`.
    pub classes: u64,
    /// f32: half as many as the embedding has values; `None` for the class's row alone.
    pub frequencies: Option<u64>,
    /// Whether the cosines come before the sines.
    pub cosines_first: bool,
    /// f32 `[classes + 1, values]`, the last row for no class; `None` for the level alone.
    pub labels: Option<u64>,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Args {
    noise: u64,
    classes: u64,
    frequencies: u64,
    labels: u64,
    y: u64,
    half: u32,
    width: u32,
    pitch: u32,
    cosines_first: u32,
}

/// `y[b] = (sin(noise_b f), cos(noise_b f)) + labels[class_b]`, or one of both terms: `y` is one sample whose pixels are the
/// batch's.
pub fn embedding(element: Element, from: &Embedding, y: &Map) -> Launch {
    let args = Args {
        noise: from.noise,
        classes: from.classes,
        frequencies: from.frequencies.unwrap_or(0),
        labels: from.labels.unwrap_or(0),
        y: y.address,
        half: from.frequencies.map_or(0, |_| y.channels / 2) as u32,
        width: y.channels as u32,
        pitch: y.pitch() as u32,
        cosines_first: from.cosines_first.into(),
    };
    let labels = if from.labels.is_some() { y.pixels() * y.channels * 4 } else { 0 };
    let cost = Cost { bytes: (y.bytes(element) + labels) as u64, operations: 0 };
    // Outer product, sine, cosine, concatenation; of labels: scale, product, bias, sum.
    let op_by_op = match (from.frequencies, from.labels) {
        (Some(_), Some(_)) => 8,
        (Some(_), None) => 4,
        (None, _) => 3,
    };
    Launch::new("embedding", Some(element), [y.pixels(), 1, 1], &args, cost, op_by_op)
}

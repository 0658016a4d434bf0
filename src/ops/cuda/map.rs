//! Feature maps in a machine's memory.

use super::{Precision, pitch};

/// Feature maps in a machine's memory: `[samples, height, width, pitch(channels)]`, zeros behind the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// Where it is.
    pub address: u64,
    /// Samples.
    pub samples: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl Map {
    /// Pixels of a sample.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Elements from pixel to pixel.
    pub fn pitch(&self) -> usize {
        pitch(self.channels)
    }

    /// Its size.
    pub fn bytes(&self, precision: Precision) -> usize {
        self.samples * self.pixels() * self.pitch() * precision.bytes()
    }
}

/// Slopes and offsets by sample and channel: f32 `[samples, 2, pitch]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affine {
    /// Where they are.
    pub address: u64,
}

/// The pitches of one or two parts, and the bytes of both.
pub(super) fn parts(precision: Precision, x: &[&Map]) -> ([usize; 2], usize) {
    assert!(x.len() == 1 || x.len() == 2 && x[0].channels.is_multiple_of(8), "parts that lie side by side");
    assert!(x.iter().all(|map| (map.samples, map.pixels()) == (x[0].samples, x[0].pixels())), "parts of one size");
    ([x[0].pitch(), x.get(1).map_or(0, |map| map.pitch())], x.iter().map(|map| map.bytes(precision)).sum())
}

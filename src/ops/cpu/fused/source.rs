//! What a layer reads: one map or several side by side, normalised and activated on the way.

use super::map::Map;
use super::panels::PANEL;
use crate::ops::cpu::activation::sigmoid;
use crate::ops::cpu::simd::vectorised;
use std::ops::Range;

/// `act(x * slope + shift)` by sample and channel: a GroupNorm whose statistics are known.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// `[batch, pitch]`.
    pub slope: &'a [f32],
    /// `[batch, pitch]`.
    pub shift: &'a [f32],
    /// Elements from a sample to the next.
    pub pitch: usize,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Maps of one size read as one, the channels of each after those of the one before.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The maps.
    pub parts: &'a [&'a Map],
    /// What happens to their values.
    pub affine: Option<Affine<'a>>,
}

/// Rows and columns of a source, which may reach beyond the image.
#[derive(Clone, Debug)]
pub struct Window {
    /// The sample.
    pub sample: usize,
    /// The first row.
    pub top: isize,
    /// The first column.
    pub left: isize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// From a row to the next, and from a column to the next: 1 for neighbours.
    pub step: usize,
    /// The channels.
    pub channels: Range<usize>,
}

impl Source<'_> {
    /// Samples, rows and columns.
    pub fn size(&self) -> [usize; 3] {
        let first = self.parts[0];
        [first.batch, first.height, first.width]
    }

    /// Channels of all maps together.
    pub fn channels(&self) -> usize {
        self.parts.iter().map(|part| part.channels).sum()
    }

    /// Copies a window: pixel `(row, column)` goes to `out[(row * columns + column) * stride..]`, its values normalised
    /// and activated; what lies outside the image is zero, as padding is zero after the activation.
    pub fn read(&self, window: &Window, out: &mut [f32], stride: usize) {
        vectorised(
            #[inline(always)]
            || match &self.affine {
                None => self.read_with(
                    window,
                    out,
                    stride,
                    #[inline(always)]
                    |value, _, _| value,
                ),
                Some(Affine { silu: true, .. }) => self.read_with(
                    window,
                    out,
                    stride,
                    #[inline(always)]
                    |value, slope, shift| {
                        let z = value.mul_add(slope, shift);
                        z * sigmoid(z)
                    },
                ),
                Some(_) => self.read_with(
                    window,
                    out,
                    stride,
                    #[inline(always)]
                    |value, slope, shift| value.mul_add(slope, shift),
                ),
            },
        );
    }

    /// `apply(value, slope, shift)` on every value.
    #[inline(always)]
    fn read_with(&self, window: &Window, out: &mut [f32], stride: usize, apply: impl Fn(f32, f32, f32) -> f32) {
        let [_, height, width] = self.size();
        let step = window.step;
        // Of the window's columns those on the image.
        let reach = |end: isize| (end - window.left).max(0) as usize;
        let before = reach(0).div_ceil(step).min(window.columns);
        let inside = reach(width as isize).div_ceil(step).clamp(before, window.columns) - before;
        let start = (window.left + (before * step) as isize).clamp(0, width as isize) as usize;
        let span = if inside == 0 { 0 } else { (inside - 1) * step + 1 };
        for (row, out) in out.chunks_exact_mut(window.columns * stride).take(window.rows).enumerate() {
            let y = window.top + (row * step) as isize;
            if y < 0 || y >= height as isize {
                out.fill(0.0);
                continue;
            }
            let (before, rest) = out.split_at_mut(before * stride);
            let (image, after) = rest.split_at_mut(inside * stride);
            before.fill(0.0);
            after.fill(0.0);
            let mut first = 0;
            for part in self.parts {
                let channels = first.max(window.channels.start)..(first + part.channels).min(window.channels.end);
                if !channels.is_empty() {
                    let pitch = part.pitch();
                    let start = window.sample * part.sample() + (y as usize * width + start) * pitch;
                    let from = &part.data()[start..][..span * pitch];
                    let (skip, place) = (channels.start - first, channels.start - window.channels.start);
                    // A line of channels at a time: its slopes and shifts stay in registers for the whole row.
                    let whole = channels.len() / PANEL * PANEL;
                    for line in (0..whole).step_by(PANEL) {
                        let (slope, shift) = self.coefficients::<PANEL>(window.sample, channels.start + line);
                        for (from, to) in from.chunks(step * pitch).zip(image.chunks_exact_mut(stride)) {
                            let from: &[f32; PANEL] = from[skip + line..].first_chunk().expect("a whole line");
                            let to: &mut [f32; PANEL] = to[place + line..].first_chunk_mut().expect("a whole line");
                            for i in 0..PANEL {
                                to[i] = apply(from[i], slope[i], shift[i]);
                            }
                        }
                    }
                    for channel in whole..channels.len() {
                        let ([slope], [shift]) = self.coefficients(window.sample, channels.start + channel);
                        for (from, to) in from.chunks(step * pitch).zip(image.chunks_exact_mut(stride)) {
                            to[place + channel] = apply(from[skip + channel], slope, shift);
                        }
                    }
                }
                first += part.channels;
            }
        }
    }

    /// Slopes and shifts of `N` channels.
    #[inline(always)]
    fn coefficients<const N: usize>(&self, sample: usize, channel: usize) -> ([f32; N], [f32; N]) {
        self.affine.map_or(([1.0; N], [0.0; N]), |affine| {
            let read = |all: &[f32]| *all[sample * affine.pitch + channel..].first_chunk().expect("whole lines");
            (read(affine.slope), read(affine.shift))
        })
    }
}

//! What a layer reads: one map or two side by side, normalised and activated on the way.

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

/// A rectangle of a source, which may reach beyond the image.
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
                None => self.read_with(window, out, stride, |from, to, _| to.copy_from_slice(from)),
                Some(affine) if affine.silu => self.read_with(
                    window,
                    out,
                    stride,
                    #[inline(always)]
                    |from, to, channel| {
                        affine.apply(
                            window.sample,
                            channel,
                            from,
                            to,
                            #[inline(always)]
                            |z| z * sigmoid(z),
                        )
                    },
                ),
                Some(affine) => self.read_with(
                    window,
                    out,
                    stride,
                    #[inline(always)]
                    |from, to, channel| affine.apply(window.sample, channel, from, to, |z| z),
                ),
            },
        );
    }

    #[inline(always)]
    fn read_with(&self, window: &Window, out: &mut [f32], stride: usize, copy: impl Fn(&[f32], &mut [f32], usize)) {
        let [_, height, width] = self.size();
        let wide = window.columns * stride;
        let clip = |column: isize| column.clamp(0, width as isize) as usize;
        let inside = clip(window.left)..clip(window.left + window.columns as isize);
        let before = if inside.is_empty() { 0 } else { (inside.start as isize - window.left) as usize };
        for (row, out) in out.chunks_exact_mut(wide).take(window.rows).enumerate() {
            let y = window.top + row as isize;
            if y < 0 || y >= height as isize {
                out.fill(0.0);
                continue;
            }
            let (before, rest) = out.split_at_mut(before * stride);
            let (image, after) = rest.split_at_mut(inside.len() * stride);
            before.fill(0.0);
            after.fill(0.0);
            let mut first = 0;
            for part in self.parts {
                let channels = first.max(window.channels.start)..(first + part.channels).min(window.channels.end);
                if !channels.is_empty() {
                    let pitch = part.pitch();
                    let start = window.sample * part.sample() + (y as usize * width + inside.start) * pitch;
                    let from = &part.data()[start..][..inside.len() * pitch];
                    let (skip, place) = (channels.start - first, channels.start - window.channels.start);
                    for (from, to) in from.chunks_exact(pitch).zip(image.chunks_exact_mut(stride)) {
                        copy(&from[skip..][..channels.len()], &mut to[place..][..channels.len()], channels.start);
                    }
                }
                first += part.channels;
            }
        }
    }
}

impl Affine<'_> {
    #[inline(always)]
    fn apply(&self, sample: usize, channel: usize, from: &[f32], to: &mut [f32], act: impl Fn(f32) -> f32) {
        let place = sample * self.pitch + channel;
        let (slope, shift) = (&self.slope[place..][..from.len()], &self.shift[place..][..from.len()]);
        let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<PANEL>(), to.as_chunks_mut::<PANEL>());
        let ((slope, slope_rest), (shift, shift_rest)) = (slope.as_chunks::<PANEL>(), shift.as_chunks::<PANEL>());
        for (((to, from), slope), shift) in to.iter_mut().zip(from).zip(slope).zip(shift) {
            for i in 0..PANEL {
                to[i] = act(from[i].mul_add(slope[i], shift[i]));
            }
        }
        for (((to, from), slope), shift) in to_rest.iter_mut().zip(from_rest).zip(slope_rest).zip(shift_rest) {
            *to = act(from.mul_add(*slope, *shift));
        }
    }
}

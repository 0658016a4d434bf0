//! Pillow's bicubic filter on bytes (its `Resample.c`), to the bit: antialiased, in fixed point, and rounded to bytes after
//! each of its two passes.

use crate::ImageShape;
use std::ops::Range;

/// Pillow's fraction bits: a byte and two bits for sums that overshoot are left of 32.
const PRECISION: u32 = 32 - 8 - 2;
/// How far the filter reaches, in pixels of the smaller of the two sizes.
const REACH: f64 = 2.0;

/// The values of a line's pixels as weighted sums of those of another line.
struct Line {
    /// For each pixel that is made, the first that it is made of, and the weights of that and the next ones.
    sums: Vec<(usize, Vec<i32>)>,
}

impl Line {
    /// The pixels `kept` of those that a line of `from` pixels has when it is resized to `to`.
    fn new(from: usize, to: usize, kept: Range<usize>) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let reach = REACH * stretch;
        let sum = |place: usize| {
            let centre = (place as f64 + 0.5) * scale;
            // Towards zero, as C casts.
            let first = ((centre - reach + 0.5) as i64).max(0) as usize;
            let end = ((centre + reach + 0.5) as usize).min(from);
            let weights: Vec<f64> =
                (first..end).map(|source| cubic((source as f64 - centre + 0.5) * (1.0 / stretch))).collect();
            let total: f64 = weights.iter().sum();
            (first, weights.iter().map(|weight| fixed(weight / total)).collect())
        };
        Self { sums: kept.map(sum).collect() }
    }

    /// One value, of those that lie `stride` apart in `values`.
    fn value(&self, place: usize, values: &[u8], stride: usize) -> u8 {
        let (first, weights) = &self.sums[place];
        let sources = values[first * stride..].iter().step_by(stride);
        let half = 1 << (PRECISION - 1);
        let sum = sources.zip(weights).fold(half, |sum, (&value, weight)| sum + i32::from(value) * weight);
        (sum >> PRECISION).clamp(0, 255) as u8
    }
}

/// Keys' cubic with a = -0.5 (Catmull and Rom's).
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    match x {
        _ if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

/// A weight in fixed point, rounded half away from zero as C does it.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (scaled + 0.5f64.copysign(scaled)) as i32
}

/// Resizes images of one size, and cuts a square out of their centre.
pub struct Resize {
    from: ImageShape,
    columns: Line,
    rows: Line,
    side: usize,
}

impl Resize {
    /// The short side becomes `short`, the long one as much longer, rounded down; of that, the central square of `side`
    /// pixels is made.
    ///
    /// # Panics
    /// If `side` is larger than `short`, or the image has no pixels.
    pub fn new(from: ImageShape, short: usize, side: usize) -> Self {
        let least = from.height.min(from.width);
        let line = |pixels: usize| {
            // `int(short * long / least)` in whole numbers; of the short side, `short`.
            let to = short * pixels / least;
            let start = half_to_even(to - side);
            Line::new(pixels, to, start..start + side)
        };
        Self { from, columns: line(from.width), rows: line(from.height), side }
    }

    /// uint8 `[side, side, channels]` of an image `[height, width, channels]`.
    pub fn apply(&self, image: &[u8]) -> Vec<u8> {
        let ImageShape { width, channels, .. } = self.from;
        let narrowed: Vec<u8> = image
            .chunks_exact(width * channels)
            .flat_map(|row| places(self.side, channels).map(|(x, c)| self.columns.value(x, &row[c..], channels)))
            .collect();
        let pitch = self.side * channels;
        places(self.side, pitch).map(|(y, at)| self.rows.value(y, &narrowed[at..], pitch)).collect()
    }
}

/// All pairs of an index below `outer` and one below `inner`, the latter first.
fn places(outer: usize, inner: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..outer).flat_map(move |a| (0..inner).map(move |b| (a, b)))
}

/// Half of a number, rounded to even.
fn half_to_even(number: usize) -> usize {
    let half = number / 2;
    half + (number % 2) * (half % 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_number_is_rounded_to_even() {
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(half_to_even), [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn an_image_of_the_wanted_size_stays_as_it_is() {
        let shape = ImageShape { height: 5, width: 5, channels: 3 };
        let image: Vec<u8> = (0..75).map(|index| (index * 37 % 256) as u8).collect();
        assert_eq!(Resize::new(shape, 5, 5).apply(&image), image);
    }

    #[test]
    fn an_even_image_stays_even_at_any_size() {
        for (height, width, short, side) in [(1, 1, 7, 7), (3, 100, 8, 5), (90, 31, 16, 16), (17, 17, 40, 33)] {
            let shape = ImageShape { height, width, channels: 1 };
            for value in [0, 1, 128, 255] {
                let made = Resize::new(shape, short, side).apply(&vec![value; height * width]);
                assert_eq!(made, vec![value; side * side], "{shape:?}");
            }
        }
    }
}

//! Pooling: the largest values or the means of the pixels under a window, channel by channel.

use super::conv::Places;
use super::simd::vectorised;
use rayon::prelude::*;
use std::ops::Range;

/// What is made of the pixels under a window. Those beyond the map do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// The largest.
    Max,
    /// Their mean.
    Mean,
}

/// A pool over maps of so many rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct Pooling {
    /// What is made of the pixels.
    pub reduce: Reduce,
    /// Where the window stands. Each has a pixel of the map.
    pub places: Places,
    /// Rows and columns of the input.
    pub size: [usize; 2],
}

/// Some channels of a map's pixels.
#[derive(Clone, Copy, Debug)]
pub struct Pixels<'a> {
    /// The elements, from the first pixel's first channel on.
    pub data: &'a [f32],
    /// Elements from a pixel to the next.
    pub pitch: usize,
    /// How many channels.
    pub channels: usize,
}

impl Pooling {
    /// The pixels of the map along an axis that the window at `place` has.
    fn inside(&self, axis: usize, place: usize) -> Range<usize> {
        let Places { kernel, stride, pad, .. } = self.places;
        let first = place * stride;
        first.saturating_sub(pad[axis])..(first + kernel[axis]).saturating_sub(pad[axis]).min(self.size[axis])
    }

    /// The pixels of the map, row by row, that the window at a row and a column of the output has.
    fn window(&self, [row, column]: [usize; 2]) -> impl Iterator<Item = usize> + Clone {
        let (columns, width) = (self.inside(1, column), self.size[1]);
        self.inside(0, row).flat_map(move |row| columns.clone().map(move |column| row * width + column))
    }

    /// Row `row` of the output of one sample, whose pixels lie `pitch` elements apart in `y`.
    pub fn row(&self, x: Pixels, row: usize, y: &mut [f32], pitch: usize) {
        vectorised(
            #[inline(always)]
            || {
                for (column, y) in y.chunks_mut(pitch).take(self.places.on(self.size)[1]).enumerate() {
                    let y = &mut y[..x.channels];
                    let mut pixels = self.window([row, column]).map(|pixel| &x.data[pixel * x.pitch..][..x.channels]);
                    y.copy_from_slice(pixels.next().expect("a window has a pixel of the map"));
                    match self.reduce {
                        Reduce::Max => {
                            for x in pixels {
                                y.iter_mut().zip(x).for_each(|(y, &x)| *y = if x > *y { x } else { *y });
                            }
                        }
                        Reduce::Mean => {
                            let mut count = 1.0;
                            for x in pixels {
                                y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
                                count += 1.0;
                            }
                            y.iter_mut().for_each(|y| *y /= count);
                        }
                    }
                }
            },
        );
    }

    /// All samples: x is `[B, H, W, channels]`, y `[B, H', W', channels]`.
    pub fn run(&self, x: &[f32], channels: usize, y: &mut [f32]) {
        let [height, width] = self.places.on(self.size);
        if y.is_empty() {
            return;
        }
        let sample = self.size[0] * self.size[1] * channels;
        y.par_chunks_mut(width * channels).enumerate().for_each(|(row, y)| {
            let data = &x[row / height * sample..][..sample];
            self.row(Pixels { data, pitch: channels, channels }, row % height, y, channels);
        });
    }

    /// The gradient of the input of [`Self::run`], given that of its output; of several largest values the first has
    /// it.
    pub fn backward(&self, x: &[f32], dy: &[f32], channels: usize, dx: &mut [f32]) {
        let [height, width] = self.places.on(self.size);
        dx.fill(0.0);
        if dy.is_empty() {
            return;
        }
        let sample = self.size[0] * self.size[1] * channels;
        let samples = dx.par_chunks_mut(sample).zip(x.par_chunks(sample)).zip(dy.par_chunks(height * width * channels));
        samples.for_each(|((dx, x), dy)| {
            for (place, dy) in dy.chunks_exact(channels).enumerate() {
                let window = self.window([place / width, place % width]);
                match self.reduce {
                    Reduce::Max => {
                        for (channel, dy) in dy.iter().enumerate() {
                            let largest = |best: usize, at: usize| if x[at] > x[best] { at } else { best };
                            let at = window.clone().map(|pixel| pixel * channels + channel).reduce(largest);
                            dx[at.expect("a window has a pixel of the map")] += dy;
                        }
                    }
                    Reduce::Mean => {
                        let share = 1.0 / window.clone().count() as f32;
                        for pixel in window {
                            let dx = &mut dx[pixel * channels..][..channels];
                            dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy * share);
                        }
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::{assert_close, assert_same_in_any_pool, slope, values, widen};

    const CASES: [(Reduce, Places, [usize; 2]); 6] = [
        (Reduce::Max, Places::new([3, 3], 2, [0, 0]), [7, 8]),
        (Reduce::Max, Places::new([3, 3], 1, [1, 1]), [4, 5]),
        (Reduce::Mean, Places::new([3, 3], 1, [1, 1]), [5, 4]),
        (Reduce::Mean, Places::new([4, 3], 1, [0, 0]), [4, 3]),
        (Reduce::Mean, Places::new([1, 2], 3, [0, 1]), [6, 9]),
        (Reduce::Max, Places::new([3, 3], 1, [1, 1]), [1, 1]),
    ];
    const CHANNELS: usize = 3;
    const BATCH: usize = 2;

    /// By the definition, in f64.
    fn reference(reduce: Reduce, places: Places, [height, width]: [usize; 2], x: &[f64]) -> Vec<f64> {
        let [out_height, out_width] = places.on([height, width]);
        let mut y = Vec::new();
        for index in 0..BATCH * out_height * out_width * CHANNELS {
            let (pixel, channel) = (index / CHANNELS, index % CHANNELS);
            let (sample, row, column) =
                (pixel / out_width / out_height, pixel / out_width % out_height, pixel % out_width);
            let mut under = Vec::new();
            for (i, j) in (0..places.kernel[0]).flat_map(|i| (0..places.kernel[1]).map(move |j| (i, j))) {
                let row = (row * places.stride + i).wrapping_sub(places.pad[0]);
                let column = (column * places.stride + j).wrapping_sub(places.pad[1]);
                if row < height && column < width {
                    under.push(x[((sample * height + row) * width + column) * CHANNELS + channel]);
                }
            }
            y.push(match reduce {
                Reduce::Max => under.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                Reduce::Mean => under.iter().sum::<f64>() / under.len() as f64,
            });
        }
        y
    }

    #[test]
    fn pools_and_their_gradients_match_loops_in_f64() {
        for (reduce, places, size) in CASES {
            let x = values(1, BATCH * size[0] * size[1] * CHANNELS);
            let want = reference(reduce, places, size, &widen(&x));
            let (pooling, dy) = (Pooling { reduce, places, size }, values(2, want.len()));
            let (mut y, mut dx) = (vec![f32::NAN; want.len()], vec![f32::NAN; x.len()]);
            pooling.run(&x, CHANNELS, &mut y);
            assert_close(&y, &want, 3e-7);
            pooling.backward(&x, &dy, CHANNELS, &mut dx);
            let loss = |x: &[f64]| {
                let y = reference(reduce, places, size, x);
                y.iter().zip(&dy).map(|(y, &dy)| y * f64::from(dy)).sum::<f64>()
            };
            let want: Vec<f64> = (0..x.len()).map(|i| slope(&widen(&x), i, loss)).collect();
            assert_close(&dx, &want, 1e-6);
        }
    }

    #[test]
    fn of_equal_values_the_first_has_the_gradient() {
        let pooling = Pooling { reduce: Reduce::Max, places: Places::square(2, 2, 0), size: [2, 2] };
        let mut dx = [f32::NAN; 4];
        pooling.backward(&[1.0, 3.0, 3.0, 2.0], &[5.0], 1, &mut dx);
        assert_eq!(dx, [0.0, 5.0, 0.0, 0.0]);
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let (x, dy) = (values(1, 3 * 40 * 40 * 8), values(2, 3 * 40 * 40 * 8));
        for reduce in [Reduce::Max, Reduce::Mean] {
            let pooling = Pooling { reduce, places: Places::same([3, 3]), size: [40, 40] };
            assert_same_in_any_pool(|| {
                let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                pooling.run(&x, 8, &mut y);
                pooling.backward(&x, &dy, 8, &mut dx);
                (y, dx)
            });
        }
    }
}

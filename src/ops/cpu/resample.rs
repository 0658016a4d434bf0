//! EDM's filtered resampling by 2 (Karras et al. 2022, `Conv2d` with `resample_filter`): depthwise, separable, zero-padded.

use rayon::prelude::*;

use super::simd::vectorised;

/// Side of the output of [`down`] for an input of side `n`.
pub fn down_size(n: usize, taps: usize, pad: usize) -> usize {
    (n + 2 * pad - taps) / 2 + 1
}

/// Side of the output of [`up`] for an input of side `n`.
pub fn up_size(n: usize, taps: usize, pad: usize) -> usize {
    (n - 1) * 2 + taps - 2 * pad
}

/// Which way a map is resampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `y = gain * conv2d(x, F, stride 2, padding pad)` by channel, with `F = outer(f, f) / sum(f)²`:
    /// `y[oy, ox] = gain * Σ_ij F[i, j] * x[2 oy + i - pad, 2 ox + j - pad]`.
    ///
    /// EDM's downsampling has gain 1; gain 4 makes it the gradient of its upsampling.
    Down,
    /// `y = gain * conv_transpose2d(x, F, stride 2, padding pad)` by channel:
    /// `y[2 iy + i - pad, 2 ix + j - pad] += gain * F[i, j] * x[iy, ix]`.
    ///
    /// EDM's upsampling has gain 4; gain 1 makes it the gradient of its downsampling, provided that the downsampling left
    /// no row over: `h + 2 * pad - len` even there.
    Up,
}

impl Direction {
    /// Side of the output for an input of side `n`.
    pub fn size(self, n: usize, taps: usize, pad: usize) -> usize {
        match self {
            Self::Down => down_size(n, taps, pad),
            Self::Up => up_size(n, taps, pad),
        }
    }

    /// The gain of EDM's networks.
    pub fn gain(self) -> f32 {
        match self {
            Self::Down => 1.0,
            Self::Up => 4.0,
        }
    }

    /// The input that tap `i` joins to output `o`, of `n`.
    #[inline(always)]
    fn input(self, o: usize, n: usize, i: usize, pad: usize) -> Option<usize> {
        match self {
            Self::Down => (2 * o + i).checked_sub(pad).filter(|&at| at < n),
            Self::Up => {
                let twice = (o + pad).checked_sub(i).filter(|twice| twice.is_multiple_of(2));
                twice.map(|twice| twice / 2).filter(|&at| at < n)
            }
        }
    }
}

/// A resampling of maps `[H, W, C]`, laid out once: output rows can be made in any order.
#[derive(Clone, Debug)]
pub struct Resampler {
    direction: Direction,
    pad: usize,
    input: [usize; 3],
    /// Rows and columns of the output.
    output: [usize; 2],
    /// Weights of the taps along the rows, gain included.
    down_columns: Vec<f32>,
    /// The inputs of every output column with their weights, and where each column's begin.
    columns: Vec<(usize, f32)>,
    starts: Vec<usize>,
}

impl Resampler {
    /// For maps of this size, and a filter with this many zeros around the map.
    pub fn new(direction: Direction, input @ [h, w, c]: [usize; 3], filter: &[f32], pad: usize, gain: f32) -> Self {
        let output @ [_, ow] = [h, w].map(|side| direction.size(side, filter.len(), pad));
        let sum: f64 = filter.iter().map(|&f| f64::from(f)).sum();
        let down_columns = filter.iter().map(|&f| (f64::from(f) * f64::from(gain) / sum) as f32).collect();
        let along_rows: Vec<f32> = filter.iter().map(|&f| (f64::from(f) / sum) as f32).collect();
        let mut columns = Vec::new();
        let mut starts = vec![0];
        for ox in 0..ow {
            let taps =
                (0..filter.len()).filter_map(|j| direction.input(ox, w, j, pad).map(|ix| (ix * c, along_rows[j])));
            columns.extend(taps);
            starts.push(columns.len());
        }
        Self { direction, pad, input, output, down_columns, columns, starts }
    }

    /// Rows and columns of the input.
    pub fn input(&self) -> [usize; 2] {
        [self.input[0], self.input[1]]
    }

    /// Rows and columns of the output.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// Elements of the scratch that [`Self::row`] needs.
    pub fn scratch(&self) -> usize {
        self.input[1] * self.input[2]
    }

    /// Row `oy` of the output of one sample: the input rows are added up first, then the pixels of that sum.
    pub fn row(&self, x: &[f32], oy: usize, scratch: &mut [f32], y: &mut [f32]) {
        let [h, w, c] = self.input;
        assert!(x.len() == h * w * c && scratch.len() == w * c && y.len() == self.output[1] * c);
        vectorised(
            #[inline(always)]
            || {
                let taps = self.down_columns.iter().enumerate();
                let rows = taps
                    .filter_map(|(i, &weight)| self.direction.input(oy, h, i, self.pad).map(|iy| (iy * w * c, weight)));
                weighted_sum(scratch, x, rows);
                for (ox, y) in y.chunks_exact_mut(c).enumerate() {
                    let taps = &self.columns[self.starts[ox]..self.starts[ox + 1]];
                    weighted_sum(y, scratch, taps.iter().copied());
                }
            },
        );
    }

    /// All rows of all samples: x is [B, H, W, C].
    pub fn run(&self, x: &[f32], y: &mut [f32]) {
        let [h, w, c] = self.input;
        let [oh, ow] = self.output;
        assert_eq!(x.len() * oh * ow, y.len() * h * w, "x is [B, {h}, {w}, {c}], y is [B, {oh}, {ow}, {c}]");
        if y.is_empty() {
            return;
        }
        let rows_per_task = (16 * 1024 / (ow * c)).max(1);
        y.par_chunks_mut(ow * c).enumerate().with_min_len(rows_per_task).for_each_init(
            || vec![0.0; self.scratch()],
            |scratch, (row, y)| self.row(&x[row / oh * h * w * c..][..h * w * c], row % oh, scratch, y),
        );
    }
}

/// `y = Σ weight * x[start..][..y.len()]`, two terms at a time.
#[inline(always)]
fn weighted_sum(y: &mut [f32], x: &[f32], mut terms: impl Iterator<Item = (usize, f32)>) {
    let n = y.len();
    let mut first = true;
    while let Some((a, wa)) = terms.next() {
        let a = &x[a..][..n];
        let (b, wb) = terms.next().map_or((a, 0.0), |(b, wb)| (&x[b..][..n], wb));
        match (first, wb == 0.0) {
            (true, true) => (0..n).for_each(|i| y[i] = wa * a[i]),
            (true, false) => (0..n).for_each(|i| y[i] = wa.mul_add(a[i], wb * b[i])),
            (false, true) => (0..n).for_each(|i| y[i] = wa.mul_add(a[i], y[i])),
            (false, false) => (0..n).for_each(|i| y[i] = wa.mul_add(a[i], wb.mul_add(b[i], y[i]))),
        }
        first = false;
    }
    if first {
        y.fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::{assert_close, assert_same_in_any_pool, values, widen};

    const FILTERS: [(&[f32], usize); 4] =
        [(&[1.0, 1.0], 0), (&[1.0, 3.0, 3.0, 1.0], 1), (&[1.0, 2.0, 4.0], 1), (&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2)];

    /// The 2-D filter, as PyTorch would be given it.
    fn outer(f: &[f32], gain: f64) -> Vec<Vec<f64>> {
        let f = widen(f);
        let sum: f64 = f.iter().sum();
        f.iter().map(|a| f.iter().map(|b| gain * a * b / (sum * sum)).collect()).collect()
    }

    /// Calls `visit(small, large, weight)` with the index of each pair of pixels that the filter joins.
    fn pairs(
        [batch, sh, sw, c]: [usize; 4],
        [lh, lw]: [usize; 2],
        f: &[f32],
        pad: usize,
        gain: f64,
        mut visit: impl FnMut(usize, usize, f64),
    ) {
        for b in 0..batch {
            for sy in 0..sh {
                for sx in 0..sw {
                    for (i, row) in outer(f, gain).iter().enumerate() {
                        for (j, weight) in row.iter().enumerate() {
                            let (ly, lx) = ((2 * sy + i).wrapping_sub(pad), (2 * sx + j).wrapping_sub(pad));
                            if ly < lh && lx < lw {
                                for ch in 0..c {
                                    let small = ((b * sh + sy) * sw + sx) * c + ch;
                                    visit(small, ((b * lh + ly) * lw + lx) * c + ch, *weight);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn down_is_a_depthwise_convolution_of_stride_2() {
        for (f, pad) in FILTERS {
            for (batch, h, w, c) in [(1, 6, 8, 1), (3, 7, 5, 3), (1, 14, 14, 30), (3, 8, 9, 32)] {
                let (oh, ow) = (down_size(h, f.len(), pad), down_size(w, f.len(), pad));
                let x = values(1, batch * h * w * c);
                let mut y = vec![f32::NAN; batch * oh * ow * c];
                Resampler::new(Direction::Down, [h, w, c], f, pad, 1.5).run(&x, &mut y);
                let mut want = vec![0.0; y.len()];
                pairs([batch, oh, ow, c], [h, w], f, pad, 1.5, |s, l, weight| want[s] += weight * f64::from(x[l]));
                assert_close(&y, &want, 5e-7);
            }
        }
    }

    #[test]
    fn up_is_a_depthwise_transposed_convolution_of_stride_2() {
        for (f, pad) in FILTERS {
            for (batch, h, w, c) in [(1, 3, 4, 1), (3, 7, 5, 3), (1, 7, 7, 30), (3, 4, 5, 32)] {
                let (oh, ow) = (up_size(h, f.len(), pad), up_size(w, f.len(), pad));
                let x = values(1, batch * h * w * c);
                let mut y = vec![f32::NAN; batch * oh * ow * c];
                Resampler::new(Direction::Up, [h, w, c], f, pad, 4.0).run(&x, &mut y);
                let mut want = vec![0.0; y.len()];
                pairs([batch, h, w, c], [oh, ow], f, pad, 4.0, |s, l, weight| want[l] += weight * f64::from(x[s]));
                assert_close(&y, &want, 5e-7);
            }
        }
    }

    #[test]
    fn up_and_down_are_each_other_s_adjoint() {
        for (f, pad) in FILTERS {
            let (h, w, c) = (5, 7, 3);
            let (lh, lw) = (up_size(h, f.len(), pad), up_size(w, f.len(), pad));
            let (small, large) = (values(1, h * w * c), values(2, lh * lw * c));
            let (mut upped, mut downed) = (vec![0.0; large.len()], vec![0.0; small.len()]);
            Resampler::new(Direction::Up, [h, w, c], f, pad, 4.0).run(&small, &mut upped);
            Resampler::new(Direction::Down, [lh, lw, c], f, pad, 4.0).run(&large, &mut downed);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            assert!((dot(&upped, &large) - dot(&small, &downed)).abs() < 1e-4);
        }
    }

    #[test]
    fn neither_batch_nor_threads_change_a_bit() {
        let (f, pad) = FILTERS[1];
        let x = values(1, 3 * 14 * 14 * 30);
        let run = |x: &[f32], batch: usize| {
            let (mut lower, mut higher) = (vec![0.0; batch * 7 * 7 * 30], vec![0.0; batch * 28 * 28 * 30]);
            Resampler::new(Direction::Down, [14, 14, 30], f, pad, 1.0).run(x, &mut lower);
            Resampler::new(Direction::Up, [14, 14, 30], f, pad, 4.0).run(x, &mut higher);
            (lower, higher)
        };
        let (lower, higher) = run(&x, 3);
        for b in 0..3 {
            let alone = run(&x[b * 14 * 14 * 30..][..14 * 14 * 30], 1);
            assert_eq!(alone.0, lower[b * 7 * 7 * 30..][..7 * 7 * 30]);
            assert_eq!(alone.1, higher[b * 28 * 28 * 30..][..28 * 28 * 30]);
        }
        assert_same_in_any_pool(|| run(&x, 3));
    }
}

//! LayerNorm over the channels of each pixel, forward and backward.

use super::simd::vectorised;
use rayon::prelude::*;

/// Rows of a task: fixed, so that no sum depends on the number of threads.
const ROWS: usize = 64;

/// Mean and `1 / sqrt(var + eps)` of a row, in two passes: sums of sixteen lanes, which are then added in order.
#[inline(always)]
pub(crate) fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
    const LANES: usize = 16;
    #[inline(always)]
    fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let whole = x.chunks_exact(LANES);
        let rest = whole.remainder();
        for chunk in whole {
            for i in 0..LANES {
                lanes[i] += of(chunk[i]);
            }
        }
        rest.iter().zip(&mut lanes).for_each(|(&x, lane)| *lane += of(x));
        lanes.iter().sum()
    }
    let count = x.len() as f32;
    let mean = sum(
        x,
        #[inline(always)]
        |x| x,
    ) / count;
    let variance = sum(
        x,
        #[inline(always)]
        |x| (x - mean) * (x - mean),
    ) / count;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// `y = (x - mean) / sqrt(var + eps) * scale + shift` of one row (Ba et al. 2016, eq. 4); call it only inside `vectorised`.
#[inline(always)]
pub(crate) fn row(x: &[f32], scale: &[f32], shift: &[f32], eps: f32, y: &mut [f32]) {
    let (mean, inverse) = statistics(x, eps);
    for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
        *y = ((x - mean) * inverse).mul_add(*scale, *shift);
    }
}

/// [`row`] of every row: `x` and `y` are `[rows, C]`, `scale` and `shift` are `[C]`.
pub fn forward(x: &[f32], scale: &[f32], shift: &[f32], eps: f32, y: &mut [f32]) {
    let channels = scale.len();
    x.par_chunks(ROWS * channels).zip(y.par_chunks_mut(ROWS * channels)).for_each(|(x, y)| {
        vectorised(
            #[inline(always)]
            || {
                for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
                    row(x, scale, shift, eps, y);
                }
            },
        );
    });
}

/// Gradients of [`forward`]. With `g = dy scale` and `xhat` the normalised row:
/// `dx = (g - mean(g) - xhat mean(g xhat)) / sqrt(var + eps)`, `dscale = sum dy xhat`, `dshift = sum dy`.
pub fn backward(
    x: &[f32],
    scale: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dscale: &mut [f32],
    dshift: &mut [f32],
) {
    let channels = scale.len();
    let tasks =
        x.par_chunks(ROWS * channels).zip(dy.par_chunks(ROWS * channels)).zip(dx.par_chunks_mut(ROWS * channels));
    let sums: Vec<[Vec<f32>; 2]> = tasks
        .map(|((x, dy), dx)| {
            let mut sums = [vec![0.0; channels], vec![0.0; channels]];
            let [dscale, dshift] = &mut sums;
            let rows = x.chunks_exact(channels).zip(dy.chunks_exact(channels)).zip(dx.chunks_exact_mut(channels));
            vectorised(
                #[inline(always)]
                || rows.for_each(|((x, dy), dx)| row_backward(x, scale, eps, dy, dx, dscale, dshift)),
            );
            sums
        })
        .collect();
    dscale.fill(0.0);
    dshift.fill(0.0);
    for [scales, shifts] in sums {
        dscale.iter_mut().zip(scales).for_each(|(sum, part)| *sum += part);
        dshift.iter_mut().zip(shifts).for_each(|(sum, part)| *sum += part);
    }
}

#[inline(always)]
fn row_backward(
    x: &[f32],
    scale: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dscale: &mut [f32],
    dshift: &mut [f32],
) {
    let (mean, inverse) = statistics(x, eps);
    let count = x.len() as f32;
    let (mut sum, mut product) = (0.0f32, 0.0f32);
    for ((((x, scale), dy), dscale), dshift) in x.iter().zip(scale).zip(dy).zip(dscale).zip(dshift) {
        let xhat = (x - mean) * inverse;
        let g = dy * scale;
        sum += g;
        product = g.mul_add(xhat, product);
        *dscale = dy.mul_add(xhat, *dscale);
        *dshift += dy;
    }
    let (sum, product) = (sum / count, product / count);
    for (((dx, x), scale), dy) in dx.iter_mut().zip(x).zip(scale).zip(dy) {
        let xhat = (x - mean) * inverse;
        *dx = (dy * scale - sum - xhat * product) * inverse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::{assert_close, assert_same_in_any_pool, slope, values, widen};

    const EPS: f32 = 1e-5;

    fn in_f64(x: &[f64], scale: &[f64], shift: &[f64]) -> Vec<f64> {
        let channels = scale.len();
        let row = |x: &[f64]| {
            let mean = x.iter().sum::<f64>() / channels as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / channels as f64;
            let normalised = x.iter().map(move |x| (x - mean) / (variance + f64::from(EPS)).sqrt());
            normalised.zip(scale).zip(shift).map(|((x, scale), shift)| x * scale + shift).collect::<Vec<_>>()
        };
        x.chunks_exact(channels).flat_map(row).collect()
    }

    #[test]
    fn rows_and_their_gradients_match_f64() {
        for (rows, channels) in [(1, 1), (3, 7), (5, 16), (70, 40)] {
            let (x, scale, shift) = (values(1, rows * channels), values(2, channels), values(3, channels));
            let dy = values(4, rows * channels);
            let mut y = vec![0.0; x.len()];
            forward(&x, &scale, &shift, EPS, &mut y);
            assert_close(&y, &in_f64(&widen(&x), &widen(&scale), &widen(&shift)), 1e-6);
            if rows > 5 || channels == 1 {
                continue;
            }
            let (mut dx, mut dscale, mut dshift) = (vec![0.0; x.len()], vec![0.0; channels], vec![0.0; channels]);
            backward(&x, &scale, EPS, &dy, &mut dx, &mut dscale, &mut dshift);
            let (x, scale, shift, dy) = (widen(&x), widen(&scale), widen(&shift), widen(&dy));
            let loss = |y: Vec<f64>| y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
            let wants = |n: usize, of: &dyn Fn(&[f64]) -> f64, at: &[f64]| {
                (0..n).map(|i| slope(at, i, |at| of(at))).collect::<Vec<f64>>()
            };
            assert_close(&dx, &wants(x.len(), &|x| loss(in_f64(x, &scale, &shift)), &x), 2e-5);
            assert_close(&dscale, &wants(channels, &|scale| loss(in_f64(&x, scale, &shift)), &scale), 1e-5);
            assert_close(&dshift, &wants(channels, &|shift| loss(in_f64(&x, &scale, shift)), &shift), 1e-5);
        }
    }

    #[test]
    fn no_result_depends_on_the_number_of_threads() {
        let (x, scale, dy) = (values(1, 300 * 24), values(2, 24), values(3, 300 * 24));
        assert_same_in_any_pool(|| {
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            let (mut dscale, mut dshift) = (vec![0.0; 24], vec![0.0; 24]);
            forward(&x, &scale, &scale, EPS, &mut y);
            backward(&x, &scale, EPS, &dy, &mut dx, &mut dscale, &mut dshift);
            (y, dx, dscale, dshift)
        });
    }
}

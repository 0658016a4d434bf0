//! Sums, scalings and concatenation: as fast as memory allows.

use rayon::prelude::*;

use super::simd::vectorised;

/// Elements that one task handles. Fixed, so that no result depends on the number of threads.
const CHUNK: usize = 64 * 1024;

/// `y = (a + b) * s`
pub fn add_scale(a: &[f32], b: &[f32], s: f32, y: &mut [f32]) {
    assert!(a.len() == y.len() && b.len() == y.len());
    a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).zip(y.par_chunks_mut(CHUNK)).for_each(|((a, b), y)| {
        vectorised(
            #[inline(always)]
            || {
                for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                    *y = (a + b) * s;
                }
            },
        );
    });
}

/// The sum of the rows of `x`, each as long as `sum`, in order.
pub fn sum_rows(x: &[f32], sum: &mut [f32]) {
    sum.fill(0.0);
    for row in x.chunks_exact(sum.len().max(1)) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
}

/// `y = x * s`
pub fn scale(x: &[f32], s: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(|(x, y)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = x * s;
                }
            },
        );
    });
}

/// Rows of `width` elements that one task handles: about a [`CHUNK`].
fn rows_per_task(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// y [rows, ca + cb] from a [rows, ca] and b [rows, cb], side by side along the last axis.
pub fn concat(a: &[f32], ca: usize, b: &[f32], cb: usize, rows: usize, y: &mut [f32]) {
    assert!(a.len() == rows * ca && b.len() == rows * cb && y.len() == rows * (ca + cb));
    if ca == 0 || cb == 0 {
        return y.copy_from_slice(if ca == 0 { b } else { a });
    }
    let task = rows_per_task(ca + cb);
    (y.par_chunks_mut(task * (ca + cb)).zip(a.par_chunks(task * ca)).zip(b.par_chunks(task * cb))).for_each(
        |((y, a), b)| {
            for ((y, a), b) in y.chunks_exact_mut(ca + cb).zip(a.chunks_exact(ca)).zip(b.chunks_exact(cb)) {
                y[..ca].copy_from_slice(a);
                y[ca..].copy_from_slice(b);
            }
        },
    );
}

/// Adjoint, and inverse, of [`concat`]: y [rows, ca + cb] into a [rows, ca] and b [rows, cb].
pub fn split(y: &[f32], ca: usize, cb: usize, rows: usize, a: &mut [f32], b: &mut [f32]) {
    assert!(a.len() == rows * ca && b.len() == rows * cb && y.len() == rows * (ca + cb));
    if ca == 0 || cb == 0 {
        return if ca == 0 { b } else { a }.copy_from_slice(y);
    }
    let task = rows_per_task(ca + cb);
    (y.par_chunks(task * (ca + cb)).zip(a.par_chunks_mut(task * ca)).zip(b.par_chunks_mut(task * cb))).for_each(
        |((y, a), b)| {
            for ((y, a), b) in y.chunks_exact(ca + cb).zip(a.chunks_exact_mut(ca)).zip(b.chunks_exact_mut(cb)) {
                a.copy_from_slice(&y[..ca]);
                b.copy_from_slice(&y[ca..]);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::{assert_close, values, widen};

    #[test]
    fn sums_and_scalings_match_f64() {
        for n in [0, 1, 33, 3 * CHUNK + 7] {
            let (a, b) = (values(1, n), values(2, n));
            let (wa, wb) = (widen(&a), widen(&b));
            let mut y = vec![f32::NAN; n];
            add_scale(&a, &b, 0.7, &mut y);
            assert_close(&y, &wa.iter().zip(&wb).map(|(a, b)| (a + b) * 0.7).collect::<Vec<_>>(), 2e-7);
            scale(&a, -1.5, &mut y);
            assert_close(&y, &wa.iter().map(|a| a * -1.5).collect::<Vec<_>>(), 2e-7);
            add_scale(&a, &b, 1.0, &mut y);
            assert_close(&y, &wa.iter().zip(&wb).map(|(a, b)| a + b).collect::<Vec<_>>(), 2e-7);
        }
    }

    #[test]
    fn concat_places_rows_side_by_side_and_split_undoes_it() {
        for (ca, cb, rows) in [(1, 1, 1), (3, 5, 49), (96, 30, 1500), (0, 4, 3), (4, 0, 3), (2, 3, 0)] {
            let (a, b) = (values(1, rows * ca), values(2, rows * cb));
            let mut y = vec![f32::NAN; rows * (ca + cb)];
            concat(&a, ca, &b, cb, rows, &mut y);
            for row in 0..rows {
                for c in 0..ca + cb {
                    let want = if c < ca { a[row * ca + c] } else { b[row * cb + c - ca] };
                    assert_eq!(y[row * (ca + cb) + c], want);
                }
            }
            let (mut a_again, mut b_again) = (vec![f32::NAN; a.len()], vec![f32::NAN; b.len()]);
            split(&y, ca, cb, rows, &mut a_again, &mut b_again);
            assert_eq!((a_again, b_again), (a, b));
        }
    }
}

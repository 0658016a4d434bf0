//! Exponential, sigmoid and SiLU that LLVM can vectorise, and SiLU over whole slices.

use rayon::prelude::*;

use super::simd::vectorised;

/// Elements that one task handles. Fixed, so that no result depends on the number of threads.
const CHUNK: usize = 64 * 1024;

/// `e^x` with a relative error below 2e-7 over [-87, 88].
///
/// 0 below -87.7, infinity above 88.4 (a little before f32 overflows), NaN for NaN. Branch-free: call it only inside
/// `vectorised`, where `mul_add` is one instruction. Method and coefficients: Cephes `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the mantissa.
    const MAGIC: f32 = 12_582_912.0;
    // Clamped so that the exponent below lies in 0..=255: 2^-127 then reads as 0 and 2^128 as infinity.
    let x = x.clamp(-88.0, 89.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    // ln 2 in two parts; the first is exact in few bits.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127);
    p * f32::from_bits(exponent << 23)
}

/// `1 / (1 + e^-x)`; call it only inside `vectorised`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Derivative of `x * sigmoid(x)`: `s * (1 + x * (1 - s))`; call it only inside `vectorised`.
#[inline(always)]
pub(crate) fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * x.mul_add(1.0 - s, 1.0)
}

/// `y = x * sigmoid(x)`, elementwise.
pub fn silu(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(|(x, y)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = x * sigmoid(x);
                }
            },
        );
    });
}

/// [`silu`] of every element, in place and on this thread.
pub fn silu_in_place(x: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for x in x {
                *x *= sigmoid(*x);
            }
        },
    );
}

/// Gradient of [`silu`]: `dx = dy * s * (1 + x * (1 - s))` with `s = sigmoid(x)`, elementwise.
pub fn silu_backward(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(x.len() == dy.len() && x.len() == dx.len());
    x.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)).zip(dx.par_chunks_mut(CHUNK)).for_each(|((x, dy), dx)| {
        vectorised(
            #[inline(always)]
            || {
                for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                    *dx = dy * silu_slope(x);
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::{assert_close, assert_same_in_any_pool, slope, values, widen};

    fn dispatched(x: &[f32], f: impl Fn(f32) -> f32) -> Vec<f32> {
        vectorised(|| x.iter().map(|&x| f(x)).collect())
    }

    fn silu_in_f64(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    #[test]
    fn exp_and_sigmoid_are_accurate_to_a_millionth_over_the_whole_range() {
        let x: Vec<f32> = (0..=1_750_000).map(|i| (f64::from(i) * 1e-4 - 87.0) as f32).collect();
        let (e, s) = (dispatched(&x, exp), dispatched(&x, sigmoid));
        for ((&x, &e), &s) in x.iter().zip(&e).zip(&s) {
            let want = f64::from(x).exp();
            assert!((f64::from(e) / want - 1.0).abs() < 2e-7, "exp({x}) = {e}, want {want}");
            let want = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(s) / want - 1.0).abs() < 5e-7, "sigmoid({x}) = {s}, want {want}");
        }
    }

    #[test]
    fn sigmoid_saturates_and_lets_nan_through() {
        let x = [f32::NEG_INFINITY, -1e30, -100.0, 100.0, 1e30, f32::INFINITY];
        assert_eq!(dispatched(&x, sigmoid), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(dispatched(&[-1e30, 1e30, f32::INFINITY], |x| x * sigmoid(x)), [0.0, 1e30, f32::INFINITY]);
        assert_eq!(dispatched(&[-1e30, -1e3, 1e3, 1e30], silu_slope), [0.0, 0.0, 1.0, 1.0]);
        assert!(dispatched(&[f32::NAN; 17], exp).iter().all(|v| v.is_nan()));
        assert!(dispatched(&[f32::NAN; 17], sigmoid).iter().all(|v| v.is_nan()));
    }

    #[test]
    fn silu_and_its_gradient_match_f64() {
        for n in [0, 1, 5, 33, 70_000] {
            let x: Vec<f32> = values(1, n).iter().map(|v| v * 4.0).collect();
            let dy = values(2, n);
            let (mut y, mut dx) = (vec![0.0; n], vec![0.0; n]);
            silu(&x, &mut y);
            silu_backward(&x, &dy, &mut dx);
            let want: Vec<f64> = widen(&x).into_iter().map(silu_in_f64).collect();
            assert_close(&y, &want, 3e-7);
            let want: Vec<f64> = (x.iter().zip(&dy))
                .map(|(&x, &dy)| f64::from(dy) * slope(&[f64::from(x)], 0, |x| silu_in_f64(x[0])))
                .collect();
            assert_close(&dx, &want, 1e-6);
        }
    }

    #[test]
    fn silu_does_not_depend_on_the_number_of_threads() {
        let (x, dy) = (values(1, 200_001), values(2, 200_001));
        assert_same_in_any_pool(|| {
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            silu(&x, &mut y);
            silu_backward(&x, &dy, &mut dx);
            (y, dx)
        });
    }
}

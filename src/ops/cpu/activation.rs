//! Exponential, sigmoid and normal distribution that LLVM can vectorise, and activations over whole slices.

use rayon::prelude::*;

use super::simd::vectorised;
use crate::ops::Act;

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

/// The error function with an absolute error below 3e-7; call it only inside `vectorised`.
///
/// `x P(x^2) / Q(x^2)`, the minimax quotient that XLA and Eigen have, on the range where the result is not 1 to rounding.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-3.832_507, 3.832_507);
    let square = x * x;
    let p = 2.290_506_6e-4f32;
    let p = p.mul_add(square, 3.408_291e-3);
    let p = p.mul_add(square, 5.095_569_5e-2);
    let p = p.mul_add(square, 1.852_083_2e-1);
    let p = p.mul_add(square, std::f32::consts::FRAC_2_SQRT_PI);
    let q = -1.179_160_3e-7f32;
    let q = q.mul_add(square, 2.354_796_6e-5);
    let q = q.mul_add(square, 1.017_962_5e-3);
    let q = q.mul_add(square, 1.407_047e-2);
    let q = q.mul_add(square, 1.109_850_5e-1);
    let q = q.mul_add(square, 4.974_692_5e-1);
    let q = q.mul_add(square, 1.0);
    x * p / q
}

/// `Phi(x)`, the share of a normal variable below x; call it only inside `vectorised`.
#[inline(always)]
fn normal_below(x: f32) -> f32 {
    erf(x * std::f32::consts::FRAC_1_SQRT_2).mul_add(0.5, 0.5)
}

/// Derivative of `x Phi(x)`: `Phi(x) + x phi(x)` with the density phi; call it only inside `vectorised`.
#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    const DENSITY_AT_0: f32 = 0.398_942_3;
    (x * DENSITY_AT_0).mul_add(exp(-0.5 * x * x), normal_below(x))
}

/// `y = act(x)`, elementwise.
pub fn forward(act: Act, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(|(x, y)| {
        y.copy_from_slice(x);
        in_place(act, y);
    });
}

/// [`forward`] of every element, in place and on this thread.
pub fn in_place(act: Act, x: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || match act {
            Act::Silu => x.iter_mut().for_each(
                #[inline(always)]
                |x| *x *= sigmoid(*x),
            ),
            Act::Gelu => x.iter_mut().for_each(
                #[inline(always)]
                |x| *x *= normal_below(*x),
            ),
            Act::Relu => x.iter_mut().for_each(
                #[inline(always)]
                |x| *x = if *x < 0.0 { 0.0 } else { *x },
            ),
        },
    );
}

/// Gradient of [`forward`] at `x`: `dx = dy act'(x)`, elementwise.
pub fn backward(act: Act, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(x.len() == dy.len() && x.len() == dx.len());
    x.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)).zip(dx.par_chunks_mut(CHUNK)).for_each(|((x, dy), dx)| {
        let each = dx.iter_mut().zip(x).zip(dy);
        vectorised(
            #[inline(always)]
            || match act {
                Act::Silu => each.for_each(
                    #[inline(always)]
                    |((dx, &x), &dy)| *dx = dy * silu_slope(x),
                ),
                Act::Gelu => each.for_each(
                    #[inline(always)]
                    |((dx, &x), &dy)| *dx = dy * gelu_slope(x),
                ),
                // At 0 the slope is 0, as PyTorch has it.
                Act::Relu => each.for_each(
                    #[inline(always)]
                    |((dx, &x), &dy)| *dx = if x > 0.0 { dy } else { 0.0 },
                ),
            },
        );
    });
}

/// Rows of a task of [`gate`].
fn rows_of_task(width: usize) -> usize {
    (CHUNK / width).max(1)
}

/// `y = a * gelu(b)` of rows `(a, b)`, each of so many elements.
pub fn gate(x: &[f32], width: usize, y: &mut [f32]) {
    assert!(width > 0 && x.len() == 2 * y.len() && y.len().is_multiple_of(width));
    let rows = rows_of_task(width);
    x.par_chunks(2 * rows * width).zip(y.par_chunks_mut(rows * width)).for_each(|(x, y)| {
        for (x, y) in x.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
            let (a, b) = x.split_at(width);
            gate_row(a, b, y);
        }
    });
}

/// [`gate`] of one row, on this thread.
pub fn gate_row(a: &[f32], b: &[f32], y: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                *y = a * (b * normal_below(*b));
            }
        },
    );
}

/// Gradient of [`gate`] at `x`.
pub fn gate_backward(x: &[f32], dy: &[f32], width: usize, dx: &mut [f32]) {
    assert!(width > 0 && x.len() == dx.len() && x.len() == 2 * dy.len() && dy.len().is_multiple_of(width));
    let rows = rows_of_task(width);
    let tasks =
        x.par_chunks(2 * rows * width).zip(dy.par_chunks(rows * width)).zip(dx.par_chunks_mut(2 * rows * width));
    tasks.for_each(|((x, dy), dx)| {
        for ((x, dy), dx) in x.chunks_exact(2 * width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(2 * width)) {
            let ((a, b), (da, db)) = (x.split_at(width), dx.split_at_mut(width));
            vectorised(
                #[inline(always)]
                || {
                    for i in 0..width {
                        da[i] = dy[i] * (b[i] * normal_below(b[i]));
                        db[i] = dy[i] * a[i] * gelu_slope(b[i]);
                    }
                },
            );
        }
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
    fn the_normal_distribution_is_accurate_over_the_whole_range() {
        // The distribution by the trapezoidal rule, which is exact to rounding for smooth functions that vanish at both ends.
        let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
        let (step, mut want) = (1e-3, 0.0);
        for i in -9000..=9000 {
            let x = f64::from(i) * step;
            let got = dispatched(&[x as f32], normal_below)[0];
            assert!((f64::from(got) - want).abs() < 3e-7, "Phi({x}) = {got}, want {want}");
            want += 0.5 * step * (density(x) + density(x + step));
        }
        assert_eq!(dispatched(&[-1e30, 1e30], normal_below), [0.0, 1.0]);
        assert!(dispatched(&[f32::NAN], normal_below)[0].is_nan());
    }

    fn gelu_in_f64(x: f64) -> f64 {
        0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
    }

    #[test]
    fn activations_and_their_gradients_match_f64() {
        for (act, of, tolerance) in [
            (Act::Silu, silu_in_f64 as fn(f64) -> f64, 3e-7),
            (Act::Gelu, gelu_in_f64, 5e-7),
            (Act::Relu, |x| x.max(0.0), 0.0),
        ] {
            for n in [0, 1, 5, 33, 70_000] {
                let x: Vec<f32> = values(1, n).iter().map(|v| v * 4.0).collect();
                let dy = values(2, n);
                let (mut y, mut dx) = (vec![0.0; n], vec![0.0; n]);
                forward(act, &x, &mut y);
                backward(act, &x, &dy, &mut dx);
                let want: Vec<f64> = widen(&x).into_iter().map(of).collect();
                assert_close(&y, &want, tolerance);
                let want: Vec<f64> = (x.iter().zip(&dy))
                    .map(|(&x, &dy)| f64::from(dy) * slope(&[f64::from(x)], 0, |x| of(x[0])))
                    .collect();
                assert_close(&dx, &want, 1e-6);
            }
        }
    }

    #[test]
    fn a_gate_and_its_gradient_match_f64() {
        for [rows, width] in [[1, 1], [3, 5], [7, 33], [900, 100]] {
            let x: Vec<f32> = values(1, 2 * rows * width).iter().map(|v| v * 4.0).collect();
            let dy = values(2, rows * width);
            let (mut y, mut dx) = (vec![0.0; rows * width], vec![0.0; x.len()]);
            gate(&x, width, &mut y);
            gate_backward(&x, &dy, width, &mut dx);
            let (mut want, mut slopes) = (Vec::new(), vec![0.0; x.len()]);
            for row in 0..rows {
                for column in 0..width {
                    let at = 2 * row * width + column;
                    let (a, b) = (f64::from(x[at]), f64::from(x[at + width]));
                    let dy = f64::from(dy[row * width + column]);
                    want.push(a * gelu_in_f64(b));
                    slopes[at] = dy * gelu_in_f64(b);
                    slopes[at + width] = dy * a * slope(&[b], 0, |b| gelu_in_f64(b[0]));
                }
            }
            assert_close(&y, &want, 1e-6);
            assert_close(&dx, &slopes, 2e-6);
        }
    }

    #[test]
    fn activations_do_not_depend_on_the_number_of_threads() {
        let (x, dy) = (values(1, 200_001), values(2, 200_001));
        for act in [Act::Silu, Act::Gelu, Act::Relu] {
            assert_same_in_any_pool(|| {
                let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                forward(act, &x, &mut y);
                backward(act, &x, &dy, &mut dx);
                (y, dx)
            });
        }
    }
}

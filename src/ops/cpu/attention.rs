//! The core of multi-head attention.

use std::cell::RefCell;

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::activation::exp;
use super::parts::Parts;
use super::simd::vectorised;

/// `out = softmax(q kᵀ / sqrt(d)) v` by sample and head: Vaswani et al. 2017, eq. 1.
///
/// qkv is [B, L, 3, heads, d] (q, k and v of all heads, one after the other, at every position); out is [B, L, heads, d].
pub fn forward(qkv: &[f32], batch: usize, len: usize, heads: usize, dim: usize, out: &mut [f32]) {
    Shape::own(batch, len, heads, dim).forward([qkv, qkv], out);
}

/// The same with queries [B, queries, heads, d] and keys and values [B, keys, 2, heads, d]; out is as the queries.
pub fn across(q: &[f32], kv: &[f32], sizes: Sizes, out: &mut [f32]) {
    Shape { sizes, parts: [1, 2] }.forward([q, kv], out);
}

/// Gradient of [`forward`] at `qkv`, given `dout` [B, L, heads, d]; the softmax is computed again. `dqkv` is overwritten.
///
/// With `p` the softmax: `dv = pᵀ dout`, `dp = dout vᵀ`, `ds = p * (dp - Σ_keys p dp) / sqrt(d)`, `dq = ds k`,
/// `dk = dsᵀ q`.
pub fn backward(qkv: &[f32], dout: &[f32], batch: usize, len: usize, heads: usize, dim: usize, dqkv: &mut [f32]) {
    assert_eq!(qkv.len(), dqkv.len());
    let dqkv = Parts::new(dqkv);
    Shape::own(batch, len, heads, dim).backward([qkv, qkv], dout, [&dqkv, &dqkv]);
}

/// Gradients of [`across`], of the queries and of the keys and values.
pub fn backward_across([q, kv]: [&[f32]; 2], dout: &[f32], sizes: Sizes, [dq, dkv]: [&mut [f32]; 2]) {
    assert_eq!([q.len(), kv.len()], [dq.len(), dkv.len()]);
    Shape { sizes, parts: [1, 2] }.backward([q, kv], dout, [&Parts::new(dq), &Parts::new(dkv)]);
}

/// The sizes of attention.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Samples.
    pub batch: usize,
    /// Queries of a sample.
    pub queries: usize,
    /// Keys of a sample, and values.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub dim: usize,
}

/// Sizes, and how many parts lie side by side where the queries are, which are the first of them, and where keys and values are, the
/// last two.
#[derive(Clone, Copy)]
struct Shape {
    sizes: Sizes,
    parts: [usize; 2],
}

impl Shape {
    /// Of queries, keys and values side by side.
    fn own(batch: usize, len: usize, heads: usize, dim: usize) -> Self {
        Self { sizes: Sizes { batch, queries: len, keys: len, heads, dim }, parts: [3, 3] }
    }

    fn forward(self, [q, kv]: [&[f32]; 2], out: &mut [f32]) {
        self.check([q, kv], out);
        let out = Parts::new(out);
        self.for_each_head(1, |b, head, scratch| {
            let ([k, v], q) = (self.kv_of(b, head).map(|place| View::of(kv, place)), View::of(q, self.q_of(b, head)));
            let place = self.out_of(b, head);
            self.probabilities(q, k, scratch);
            // SAFETY: no two (sample, head) share an element of `out`, and nothing else uses it until all are done.
            unsafe { multiply(place.within(&out), place, View::of(scratch, self.scores()), v, 1.0) };
        });
    }

    fn backward(self, [q, kv]: [&[f32]; 2], dout: &[f32], [dq, dkv]: [&Parts<f32>; 2]) {
        self.check([q, kv], dout);
        self.for_each_head(2, |b, head, scratch| {
            let (q_place, kv_places) = (self.q_of(b, head), self.kv_of(b, head));
            let (q, [k, v]) = (View::of(q, q_place), kv_places.map(|place| View::of(kv, place)));
            let dout = View::of(dout, self.out_of(b, head));
            let (p, dp) = scratch.split_at_mut(self.sizes.queries * self.sizes.keys);
            self.probabilities(q, k, p);
            let scores = self.scores();
            // SAFETY: `dp` is this task's own scratch.
            unsafe { multiply(dp.as_mut_ptr(), scores, dout, v.transposed(), 1.0) };
            softmax_gradient(p, dp, self.sizes.keys);
            let (p, ds) = (View::of(p, scores), View::of(dp, scores));
            // SAFETY: no two (sample, head) share an element of the gradients, nor do q, k and v of one, and nothing else uses
            // them until all are done.
            unsafe {
                multiply(q_place.within(dq), q_place, ds, k, self.temperature());
                multiply(kv_places[0].within(dkv), kv_places[0], ds.transposed(), q, self.temperature());
                multiply(kv_places[1].within(dkv), kv_places[1], p.transposed(), dout, 1.0);
            }
        });
    }

    fn check(self, [q, kv]: [&[f32]; 2], out: &[f32]) {
        let Self { sizes: Sizes { batch, queries, keys, heads, dim }, parts: [of_q, of_kv] } = self;
        assert_eq!(q.len(), batch * queries * of_q * heads * dim, "q is [{batch}, {queries}, {of_q}, {heads}, {dim}]");
        assert_eq!(kv.len(), batch * keys * of_kv * heads * dim, "kv is [{batch}, {keys}, {of_kv}, {heads}, {dim}]");
        assert_eq!(out.len(), batch * queries * heads * dim, "out is [{batch}, {queries}, {heads}, {dim}]");
    }

    fn temperature(self) -> f32 {
        1.0 / (self.sizes.dim as f32).sqrt()
    }

    /// The matrix of scores.
    fn scores(self) -> Place {
        let Sizes { queries, keys, .. } = self.sizes;
        Place { offset: 0, rows: queries, columns: keys, row_stride: keys, column_stride: 1 }
    }

    fn out_of(self, b: usize, head: usize) -> Place {
        self.part_of(b, head, self.sizes.queries, 1, 0)
    }

    fn q_of(self, b: usize, head: usize) -> Place {
        self.part_of(b, head, self.sizes.queries, self.parts[0], 0)
    }

    fn kv_of(self, b: usize, head: usize) -> [Place; 2] {
        [2, 1].map(|last| self.part_of(b, head, self.sizes.keys, self.parts[1], self.parts[1] - last))
    }

    /// A part of so many side by side, at `len` positions.
    fn part_of(self, b: usize, head: usize, len: usize, parts: usize, part: usize) -> Place {
        let Sizes { heads, dim, .. } = self.sizes;
        let row_stride = parts * heads * dim;
        let offset = b * len * row_stride + (part * heads + head) * dim;
        Place { offset, rows: len, columns: dim, row_stride, column_stride: 1 }
    }

    /// Calls `f(sample, head, scratch)` in parallel, with scratch for so many matrices of scores of unspecified content.
    fn for_each_head(self, matrices: usize, f: impl Fn(usize, usize, &mut [f32]) + Sync) {
        thread_local! {
            static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        let Sizes { batch, queries, keys, heads, dim } = self.sizes;
        if queries == 0 || keys == 0 || dim == 0 {
            return;
        }
        let needed = matrices * queries * keys;
        (0..batch * heads).into_par_iter().for_each(|i| {
            SCRATCH.with_borrow_mut(|scratch| {
                if scratch.len() < needed {
                    scratch.resize(needed, 0.0);
                }
                f(i / heads, i % heads, &mut scratch[..needed]);
            });
        });
    }

    /// `p = softmax(q kᵀ / sqrt(d))`
    fn probabilities(self, q: View, k: View, p: &mut [f32]) {
        // SAFETY: `p` is borrowed mutably and has the size of the scores.
        unsafe { multiply(p.as_mut_ptr(), self.scores(), q, k.transposed(), self.temperature()) };
        softmax(p, self.sizes.keys);
    }
}

/// Where a matrix lies in a slice.
#[derive(Clone, Copy)]
struct Place {
    offset: usize,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl Place {
    /// The first element of the matrix in what several threads write to.
    fn within(self, parts: &Parts<f32>) -> *mut f32 {
        parts.at(self.offset, self.end() - self.offset)
    }

    fn end(self) -> usize {
        self.offset + (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// A matrix within a slice that it has been checked against.
#[derive(Clone, Copy)]
struct View<'a> {
    slice: &'a [f32],
    place: Place,
}

impl<'a> View<'a> {
    fn of(slice: &'a [f32], place: Place) -> Self {
        assert!(place.end() <= slice.len());
        Self { slice, place }
    }

    fn transposed(self) -> Self {
        let Place { offset, rows, columns, row_stride, column_stride } = self.place;
        let place =
            Place { offset, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride };
        Self { place, ..self }
    }
}

/// `out = factor * a b`, where `out` points to the first element of a matrix that lies as `place` says.
///
/// # Safety
/// That matrix is valid for writes, and nobody else reads or writes its elements meanwhile.
unsafe fn multiply(out: *mut f32, place: Place, a: View, b: View, factor: f32) {
    assert!(a.place.rows == place.rows && b.place.columns == place.columns && a.place.columns == b.place.rows);
    let first = |view: View| view.slice[view.place.offset..].as_ptr();
    // SAFETY: `View` has checked the bounds of the factors, the caller vouches for the output, and as that is exclusive
    // it does not overlap them.
    unsafe {
        gemm(
            place.rows,
            place.columns,
            a.place.columns,
            out,
            place.column_stride as isize,
            place.row_stride as isize,
            false,
            first(a),
            a.place.column_stride as isize,
            a.place.row_stride as isize,
            first(b),
            b.place.column_stride as isize,
            b.place.row_stride as isize,
            0.0,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

const LANES: usize = 16;

/// Folds `f(i, accumulator)` over `0..n` in [`LANES`] interleaved accumulators, then those with `join`.
///
/// LLVM may not reorder a sum of floats by itself; this is an order that it can vectorise.
#[inline(always)]
fn fold(n: usize, start: f32, f: impl Fn(usize, f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let whole = n - n % LANES;
    for i in (0..whole).step_by(LANES) {
        for (lane, slot) in lanes.iter_mut().enumerate() {
            *slot = f(i + lane, *slot);
        }
    }
    for i in whole..n {
        lanes[i - whole] = f(i, lanes[i - whole]);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

/// Softmax of every row of `len` elements, in place.
fn softmax(rows: &mut [f32], len: usize) {
    vectorised(
        #[inline(always)]
        || {
            for row in rows.chunks_exact_mut(len) {
                // NaN is lost here, but comes back through `exp`.
                let larger = |a: f32, b: f32| if a > b { a } else { b };
                let max = fold(len, f32::NEG_INFINITY, |i, m| larger(row[i], m), larger);
                for v in &mut *row {
                    *v = exp(*v - max);
                }
                let sum = fold(len, 0.0, |i, sum| sum + row[i], |a, b| a + b);
                let inverse = 1.0 / sum;
                for v in &mut *row {
                    *v *= inverse;
                }
            }
        },
    );
}

/// Turns `dp` into the gradient by the scores, `p * (dp - Σ p dp)`, row by row.
fn softmax_gradient(p: &[f32], dp: &mut [f32], len: usize) {
    vectorised(
        #[inline(always)]
        || {
            for (p, dp) in p.chunks_exact(len).zip(dp.chunks_exact_mut(len)) {
                let mean = fold(len, 0.0, |i, sum| p[i].mul_add(dp[i], sum), |a, b| a + b);
                for (dp, p) in dp.iter_mut().zip(p) {
                    *dp = p * (*dp - mean);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::{assert_close, assert_same_in_any_pool, slope, values, widen};

    /// [B, L, heads, d]
    const SHAPES: [[usize; 4]; 8] = [
        [1, 1, 1, 1],
        [3, 5, 2, 3],
        [1, 49, 1, 5],
        [3, 49, 3, 30],
        [1, 64, 4, 32],
        [2, 50, 8, 17],
        [1, 256, 1, 96],
        [3, 16, 2, 256],
    ];

    fn reference(qkv: &[f64], [batch, len, heads, dim]: [usize; 4]) -> Vec<f64> {
        let at = |b: usize, l: usize, part: usize, head: usize| {
            &qkv[(((b * len + l) * 3 + part) * heads + head) * dim..][..dim]
        };
        let mut out = vec![0.0; batch * len * heads * dim];
        for b in 0..batch {
            for head in 0..heads {
                for l in 0..len {
                    let q = at(b, l, 0, head);
                    let score = |key: usize| {
                        q.iter().zip(at(b, key, 1, head)).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt()
                    };
                    let max = (0..len).map(score).fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = (0..len).map(|key| (score(key) - max).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for (key, weight) in weights.iter().enumerate() {
                        for (i, v) in at(b, key, 2, head).iter().enumerate() {
                            out[((b * len + l) * heads + head) * dim + i] += weight / sum * v;
                        }
                    }
                }
            }
        }
        out
    }

    fn run_forward(qkv: &[f32], [batch, len, heads, dim]: [usize; 4]) -> Vec<f32> {
        let mut out = vec![f32::NAN; qkv.len() / 3];
        forward(qkv, batch, len, heads, dim, &mut out);
        out
    }

    fn run_backward(qkv: &[f32], dout: &[f32], [batch, len, heads, dim]: [usize; 4]) -> Vec<f32> {
        let mut dqkv = vec![f32::NAN; qkv.len()];
        backward(qkv, dout, batch, len, heads, dim, &mut dqkv);
        dqkv
    }

    #[test]
    fn forward_matches_plain_f64_loops() {
        for shape in SHAPES {
            let qkv = values(1, 3 * shape.iter().product::<usize>());
            assert_close(&run_forward(&qkv, shape), &reference(&widen(&qkv), shape), 2e-6);
        }
    }

    #[test]
    fn scores_too_large_for_exp_pick_the_largest_key() {
        let shape = [1, 49, 1, 5];
        let qkv: Vec<f32> = values(1, 3 * 49 * 5).iter().map(|v| v * 50.0).collect();
        assert_close(&run_forward(&qkv, shape), &reference(&widen(&qkv), shape), 2e-4);
    }

    #[test]
    fn backward_matches_central_differences_of_the_f64_loops() {
        for shape in SHAPES {
            let n: usize = shape.iter().product();
            let (qkv, dout) = (values(1, 3 * n), values(2, n));
            let got = run_backward(&qkv, &dout, shape);
            let loss =
                |qkv: &[f64]| reference(qkv, shape).iter().zip(&dout).map(|(y, &dy)| y * f64::from(dy)).sum::<f64>();
            let picked: Vec<usize> = (0..3 * n).step_by((3 * n / 13).max(1)).collect();
            let want: Vec<f64> = picked.iter().map(|&i| slope(&widen(&qkv), i, loss)).collect();
            let got: Vec<f32> = picked.iter().map(|&i| got[i]).collect();
            assert_close(&got, &want, 1e-5);
        }
    }

    #[test]
    fn neither_batch_nor_threads_change_a_bit() {
        for shape @ [batch, len, heads, dim] in SHAPES {
            let n: usize = shape.iter().product();
            let (qkv, dout) = (values(1, 3 * n), values(2, n));
            let (out, dqkv) = (run_forward(&qkv, shape), run_backward(&qkv, &dout, shape));
            let (m, one) = (len * heads * dim, [1, len, heads, dim]);
            for b in 0..batch {
                let (qkv, dout) = (&qkv[b * 3 * m..][..3 * m], &dout[b * m..][..m]);
                assert_eq!(run_forward(qkv, one), out[b * m..][..m]);
                assert_eq!(run_backward(qkv, dout, one), dqkv[b * 3 * m..][..3 * m]);
            }
            assert_same_in_any_pool(|| (run_forward(&qkv, shape), run_backward(&qkv, &dout, shape)));
        }
    }
}

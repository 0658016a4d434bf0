//! The softmax of attention while keys come tile by tile (Milakov and Gimelshein 2018), in powers of two.
//!
//! A row is folded in [`CHAINS`] chains, which are joined in pairs: the same on every instruction set.

use crate::ops::cpu::simd::arch;
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;

/// Chains that a row is folded in: so many that none waits for its last step.
const CHAINS: usize = 64;
/// Chains whose scores are weighed at once at the end of a row: lanes of the widest vectors.
const FEW: usize = 16;

/// What is known of a query's softmax after some of its keys.
#[derive(Clone, Copy, Debug)]
pub struct Online {
    /// The largest score.
    most: f32,
    /// The sum of `2^(score - most)`.
    pub sum: f32,
    /// What sums over the keys before are multiplied with, since `most` has grown.
    pub rescale: f32,
}

impl Online {
    /// Before the first key.
    pub const START: Self = Self { most: f32::NEG_INFINITY, sum: 0.0, rescale: 0.0 };
}

/// `2^(score - most)` of the first `len` scores of every row, in place; each row has a state, which goes on with more keys. Scores are in
/// units of `ln 2`.
pub fn softmax(rows: &mut [f32], pitch: usize, len: usize, states: &mut [Online]) {
    arch().dispatch(Softmax { rows, pitch, len, states });
}

struct Softmax<'a> {
    rows: &'a mut [f32],
    pitch: usize,
    len: usize,
    states: &'a mut [Online],
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (row, state) in self.rows.chunks_exact_mut(self.pitch).zip(self.states) {
            let (whole, rest) = row[..self.len].split_at_mut(self.len - self.len % FEW);
            let mut last = [f32::NEG_INFINITY; FEW];
            last[..rest.len()].copy_from_slice(rest);

            let mut most = Chains::<S, Largest>::new(simd);
            most.fold(whole, None);
            most.fold(&mut last, None);
            let most = Largest::of_one(state.most, most.joined());

            let (shift, mut sums) = (Some(simd.splat_f32s(most)), Chains::<S, Sum>::new(simd));
            sums.fold(whole, shift);
            if !rest.is_empty() {
                Chains::<S, Sum>::new(simd).fold(&mut last, shift);
                rest.copy_from_slice(&last[..rest.len()]);
                last[rest.len()..].fill(0.0);
                sums.fold(&mut last, None);
            }
            let sum = sums.joined();
            let mut rescale = [state.most - most; FEW];
            for powers in S::as_mut_simd_f32s(&mut rescale).0 {
                *powers = exp2(simd, *powers);
            }
            *state = Online { most, sum: state.sum.mul_add(rescale[0], sum), rescale: rescale[0] };
        }
    }
}

/// How chains go on, and how they are joined.
trait Join {
    /// Joined to anything, it changes nothing.
    const START: f32;
    fn of<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s;
    fn of_one(a: f32, b: f32) -> f32;
}

/// NaN is lost here, but comes back through [`exp2`].
struct Largest;

impl Join for Largest {
    const START: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    fn of<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.max_f32s(a, b)
    }

    #[inline(always)]
    fn of_one(a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
}

struct Sum;

impl Join for Sum {
    const START: f32 = 0.0;

    #[inline(always)]
    fn of<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.add_f32s(a, b)
    }

    #[inline(always)]
    fn of_one(a: f32, b: f32) -> f32 {
        a + b
    }
}

/// Chains over the lanes of vectors, of which the first [`CHAINS`] over the lanes of one are there.
struct Chains<S: Simd, J: Join> {
    simd: S,
    of: [S::f32s; CHAINS],
    join: PhantomData<J>,
}

impl<S: Simd, J: Join> Chains<S, J> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        Self { simd, of: [simd.splat_f32s(J::START); CHAINS], join: PhantomData }
    }

    /// Goes on by whole sets of [`FEW`] values; where there is a `shift`, these become `2^(value - shift)` before.
    #[inline(always)]
    fn fold(&mut self, values: &mut [f32], shift: Option<S::f32s>) {
        let mut all = values.chunks_exact_mut(CHAINS);
        for values in &mut all {
            self.go_on::<CHAINS>(values, shift);
        }
        for values in all.into_remainder().chunks_exact_mut(FEW) {
            self.go_on::<FEW>(values, shift);
        }
    }

    /// The same by so many values, one for each of the first chains.
    #[inline(always)]
    fn go_on<const VALUES: usize>(&mut self, values: &mut [f32], shift: Option<S::f32s>) {
        let simd = self.simd;
        let vectors = S::as_mut_simd_f32s(values).0;
        for (chain, vector) in self.of.iter_mut().zip(vectors).take(VALUES / S::F32_LANES) {
            if let Some(shift) = shift {
                *vector = exp2(simd, simd.sub_f32s(*vector, shift));
            }
            *chain = J::of(simd, *vector, *chain);
        }
    }

    /// All chains as one: those half of all apart are joined, until one is left.
    #[inline(always)]
    fn joined(mut self) -> f32 {
        let mut vectors = CHAINS / S::F32_LANES;
        while vectors * S::F32_LANES > FEW {
            vectors /= 2;
            for index in 0..vectors {
                self.of[index] = J::of(self.simd, self.of[index], self.of[index + vectors]);
            }
        }
        let mut few = [0.0; FEW];
        S::as_mut_simd_f32s(&mut few).0.copy_from_slice(&self.of[..vectors]);
        let mut width = FEW;
        while width > 1 {
            width /= 2;
            for index in 0..width {
                few[index] = J::of_one(few[index], few[index + width]);
            }
        }
        few[0]
    }
}

/// `2^x` with a relative error below 3e-7 for x from -126 to 0, and that of -126 below; NaN for NaN.
///
/// The polynomial is the minimax one of its degree for the relative error over [-1/2, 1/2] among those that are 1 at 0: a weight that does
/// not change is not changed.
#[inline(always)]
#[expect(clippy::approx_constant, reason = "a coefficient near ln 2, not ln 2")]
fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the mantissa.
    let magic = simd.splat_f32s(12_582_912.0);
    let least = simd.splat_f32s(-126.0);
    // Not a maximum, which loses NaN.
    let x = simd.select_f32s(simd.less_than_f32s(x, least), least, x);
    let shifted = simd.add_f32s(x, magic);
    let r = simd.sub_f32s(x, simd.sub_f32s(shifted, magic));
    let mut p = simd.splat_f32s(1.326_472_7e-3);
    for coefficient in [9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, 6.931_47e-1, 1.0] {
        p = simd.mul_add_f32s(p, r, simd.splat_f32s(coefficient));
    }
    // The integer goes to where the exponent is.
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p), exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::simd::narrowed::on_every_instruction_set;
    use crate::ops::cpu::testing::values;

    /// The weights of some scores that come in tiles of at most so many, and the last state.
    fn weighed(scores: &[f32], tile: usize) -> (Vec<f32>, Online) {
        let (mut weights, mut state) = (Vec::new(), [Online::START]);
        for tile in scores.chunks(tile) {
            let (mut tile, len) = (tile.to_vec(), tile.len());
            softmax(&mut tile, len, len, &mut state);
            weights.iter_mut().for_each(|weight: &mut f32| *weight *= state[0].rescale);
            weights.extend(tile);
        }
        (weights, state[0])
    }

    #[test]
    fn weights_are_powers_of_two_and_their_sum_is_known() {
        for len in [1, 5, 16, 17, 49, 64, 77, 200] {
            for scale in [1.0, 40.0, 1000.0] {
                let scores: Vec<f32> = values(len as u64, len).iter().map(|value| value * scale).collect();
                let mut got = scores.clone();
                let mut state = [Online::START];
                softmax(&mut got, len, len, &mut state);
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let want: Vec<f64> = scores.iter().map(|score| f64::from(score - most).exp2()).collect();
                for (got, want) in got.iter().zip(&want) {
                    assert!((f64::from(*got) - want).abs() <= 3e-7 * want + 2e-38, "{got} {want}");
                }
                let sum: f64 = want.iter().sum();
                assert!((f64::from(state[0].sum) / sum - 1.0).abs() < 1e-6, "{} {sum}", state[0].sum);
            }
        }
    }

    #[test]
    fn tiles_add_up() {
        let scores: Vec<f32> = values(4, 200).iter().map(|value| value * 5.0).collect();
        let (_, whole) = weighed(&scores, 200);
        for tile in [1, 13, 64] {
            let (_, state) = weighed(&scores, tile);
            assert!((state.sum / whole.sum - 1.0).abs() < 1e-5, "{} {}", state.sum, whole.sum);
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for len in [3, 16, 77, 150] {
            let scores = values(9, len);
            let [scalar, narrower, widest] = on_every_instruction_set(|| {
                let (weights, state) = weighed(&scores, len);
                (weights, state.sum, state.rescale)
            });
            assert_eq!(scalar, widest);
            assert_eq!(narrower, widest);
        }
    }

    #[test]
    fn what_is_no_number_comes_through() {
        for at in [0, 70] {
            let mut scores = values(1, 77);
            scores[at] = f32::NAN;
            let (weights, state) = weighed(&scores, 77);
            assert!(weights[at].is_nan() && state.sum.is_nan());
        }
        let (weights, _) = weighed(&[0.0, f32::INFINITY], 2);
        assert!(weights[1].is_nan());
    }
}

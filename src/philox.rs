//! Seeded random numbers that depend on their address alone: not on the device, the threads or the batch.
//!
//! # Counter layout
//!
//! Every number is a lane of one Philox4x32-10 block (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
//! 3"). A kernel that follows this table gives the same numbers. All words are 32 bits, `lo` and `hi` are the low and
//! high halves of a 64-bit number:
//!
//! | word | image noise ([`NoiseKey::draw`]) | general use ([`Stream::new`]) |
//! | --- | --- | --- |
//! | key 0, key 1 | lo, hi of the seed | lo, hi of the seed |
//! | counter 0 | element / 4 | element / 4 |
//! | counter 1 | image index | lo of the step |
//! | counter 2 | draw: 0 initial noise, k churn of step k - 1 | hi of the step |
//! | counter 3 | 0 | stream, from 1 |
//!
//! Element e is lane e % 4 of its block `w`. As a uniform it is `w[lane] / 2^32`. As a normal it comes from the pair
//! p = 2 (lane / 2) by Box-Muller, in f64: `u1 = (w[p] + 1) / 2^32` in (0, 1], `u2 = w[p + 1] / 2^32` in [0, 1),
//! `r = sqrt(-2 ln u1)`; the even lane is `r cos(2 pi u2)`, the odd lane `r sin(2 pi u2)`. So |normal| <= 6.66.

use std::f64::consts::TAU;

/// 2^-32.
const WORD: f64 = 1.0 / 4_294_967_296.0;

/// The stream that image noise is drawn from; training numbers its own from 1.
const IMAGE_STREAM: u32 = 0;

/// One block of Philox4x32-10 (Salmon et al. 2011, section 3.3).
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let [low0, high0] = multiply(counter[0], MULTIPLIERS[0]);
        let [low1, high1] = multiply(counter[2], MULTIPLIERS[1]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The noise of one image of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NoiseKey {
    /// The seed of the request.
    pub seed: u64,
    /// The index of the image in the request.
    pub image: u32,
}

impl NoiseKey {
    /// The initial noise.
    pub const INITIAL: u32 = 0;

    /// The numbers of one draw: [`Self::INITIAL`], or k for the churn of step k - 1 (the first step is 0).
    pub fn draw(self, draw: u32) -> Stream {
        Stream { key: split(self.seed), address: [self.image, draw, IMAGE_STREAM] }
    }
}

/// A sequence of random numbers, addressed by element.
///
/// One element is one 32-bit word, whatever it is read as: use different streams for numbers that must be independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    key: [u32; 2],
    address: [u32; 3],
}

impl Stream {
    /// The numbers of one purpose (`stream`, from 1: 0 belongs to image noise) at one step.
    pub fn new(seed: u64, stream: u32, step: u64) -> Self {
        let [low, high] = split(step);
        Self { key: split(seed), address: [low, high, stream] }
    }

    /// A standard normal.
    pub fn normal(&self, element: u64) -> f64 {
        normals(self.block(element / 4))[(element % 4) as usize]
    }

    /// Standard normals of elements 0 and up, rounded to f32.
    pub fn fill_normals(&self, out: &mut [f32]) {
        for (block, lanes) in out.chunks_mut(4).enumerate() {
            for (out, normal) in lanes.iter_mut().zip(normals(self.block(block as u64))) {
                *out = normal as f32;
            }
        }
    }

    /// A uniform in [0, 1), a multiple of 2^-32.
    pub fn uniform(&self, element: u64) -> f64 {
        f64::from(self.word(element)) * WORD
    }

    /// An integer in `0..n`, or 0 where `n` is 0. No value is favoured by more than n / 2^32.
    pub fn below(&self, element: u64, n: u32) -> u32 {
        multiply(self.word(element), n)[1]
    }

    fn word(&self, element: u64) -> u32 {
        self.block(element / 4)[(element % 4) as usize]
    }

    /// Blocks repeat after 2^32, which is 2^34 elements: more than a batch of images has.
    fn block(&self, block: u64) -> [u32; 4] {
        let [a, b, c] = self.address;
        philox4x32([block as u32, a, b, c], self.key)
    }
}

fn normals(words: [u32; 4]) -> [f64; 4] {
    let [a, b] = box_muller(words[0], words[1]);
    let [c, d] = box_muller(words[2], words[3]);
    [a, b, c, d]
}

/// Two standard normals from two words (Box and Muller 1958).
fn box_muller(radius: u32, angle: u32) -> [f64; 2] {
    // The + 1 keeps the logarithm finite.
    let radius = (-2.0 * ((f64::from(radius) + 1.0) * WORD).ln()).sqrt();
    let (sin, cos) = (TAU * f64::from(angle) * WORD).sin_cos();
    [radius * cos, radius * sin]
}

/// The low and high words.
fn split(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// The low and high words of a product.
fn multiply(a: u32, b: u32) -> [u32; 2] {
    split(u64::from(a) * u64::from(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 0x0123_4567_89ab_cdef;

    #[test]
    fn philox_gives_the_known_answers_of_random123() {
        let known = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, words) in known {
            assert_eq!(philox4x32(counter, key), words);
        }
    }

    /// The expected values were computed by a separate Python program from the layout in the module's doc comment.
    #[test]
    fn numbers_lie_where_the_layout_says() {
        let image = NoiseKey { seed: SEED, image: 7 }.draw(3);
        let expected = [0.056948179750440114, 0.08875599211473463, -0.746620614375098, -0.8758848683097415];
        for (lane, expected) in expected.into_iter().enumerate() {
            assert!((image.normal(8 + lane as u64) - expected).abs() < 1e-14);
        }
        let general = Stream::new(SEED, 5, 0x1_0000_0009);
        let expected = [0.8894122038036585, 0.586474409326911, 0.25121677457354963, 0.7241024631075561];
        for (lane, expected) in expected.into_iter().enumerate() {
            assert_eq!(general.uniform(4 + lane as u64), expected);
        }
        assert_eq!([4, 5, 6, 7].map(|element| general.below(element, 10)), [8, 5, 2, 7]);
    }

    #[test]
    fn filling_a_slice_of_any_length_gives_the_addressed_elements() {
        let stream = NoiseKey { seed: SEED, image: 0 }.draw(NoiseKey::INITIAL);
        for length in [0, 1, 3, 4, 5, 11] {
            let mut filled = vec![0.0; length];
            stream.fill_normals(&mut filled);
            let addressed: Vec<f32> = (0..length as u64).map(|element| stream.normal(element) as f32).collect();
            assert_eq!(filled, addressed);
        }
    }

    #[test]
    fn normals_have_the_moments_of_a_normal() {
        let mut values = vec![0.0f32; 400_000];
        Stream::new(SEED, 1, 0).fill_normals(&mut values);
        let mean = |f: &dyn Fn(f64) -> f64| values.iter().map(|&z| f(f64::from(z))).sum::<f64>() / values.len() as f64;
        // Five standard errors: 1, sqrt 2, sqrt 15 and sqrt 96 over sqrt 400000.
        assert!(mean(&|z| z).abs() < 0.008);
        assert!((mean(&|z| z * z) - 1.0).abs() < 0.012);
        assert!(mean(&|z| z.powi(3)).abs() < 0.031);
        assert!((mean(&|z| z.powi(4)) - 3.0).abs() < 0.078);
        let neighbours: f64 = values.windows(2).map(|pair| f64::from(pair[0] * pair[1])).sum();
        assert!((neighbours / values.len() as f64).abs() < 0.008);
    }

    #[test]
    fn every_part_of_an_address_changes_the_numbers() {
        let streams = [
            NoiseKey { seed: 1, image: 0 }.draw(0),
            NoiseKey { seed: 2, image: 0 }.draw(0),
            NoiseKey { seed: 1 << 32, image: 0 }.draw(0),
            NoiseKey { seed: 1, image: 1 }.draw(0),
            NoiseKey { seed: 1, image: 0 }.draw(1),
            Stream::new(1, 1, 0),
            Stream::new(1, 2, 0),
            Stream::new(1, 1, 1),
            Stream::new(1, 1, 1 << 32),
        ];
        let mut firsts = streams.map(|stream| stream.normal(0).to_bits());
        firsts.sort_unstable();
        assert!(firsts.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn the_extreme_words_give_finite_normals_and_uniforms_below_one() {
        for words in [[0; 4], [u32::MAX; 4], [0, u32::MAX, u32::MAX, 0]] {
            assert!(normals(words).iter().all(|normal| normal.abs() <= 6.661));
        }
        assert!(f64::from(u32::MAX) * WORD < 1.0);
        assert_eq!(multiply(u32::MAX, 10)[1], 9);
    }
}

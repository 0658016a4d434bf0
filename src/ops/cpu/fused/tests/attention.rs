use super::super::attention::{attention, column, columns, head_and_offset};
use super::super::panels::PANEL;
use super::{Rig, SAMPLES, dense, joined, map, sample_values};
use crate::ops::cpu::testing::assert_close;

/// The q, k and v of a sample: by pixel, part, head and offset.
struct Parts {
    values: Vec<f32>,
    heads: usize,
    dim: usize,
}

impl Parts {
    /// `sharpness` multiplies the queries: how far a row of scores is from uniform.
    fn new(sample: usize, pixels: usize, heads: usize, dim: usize, sharpness: f32) -> Self {
        let mut values = sample_values(1, sample, pixels * 3 * heads * dim);
        for pixel in values.chunks_exact_mut(3 * heads * dim) {
            pixel[..heads * dim].iter_mut().for_each(|query| *query *= sharpness);
        }
        Self { values, heads, dim }
    }

    fn at(&self, pixel: usize, part: usize, head: usize, offset: usize) -> f32 {
        self.values[((pixel * 3 + part) * self.heads + head) * self.dim + offset]
    }

    fn pixels(&self) -> usize {
        self.values.len() / (3 * self.heads * self.dim)
    }

    /// As the kernel reads the first `kept` offsets; `rest` is what else lies in their panels.
    fn laid_out(&self, kept: usize, rest: impl Fn(usize, usize, usize, usize) -> f32) -> Vec<f32> {
        let width = columns(3, self.heads, kept);
        let mut laid_out = vec![f32::NAN; self.pixels() * width];
        for (pixel, row) in laid_out.chunks_exact_mut(width).enumerate() {
            for (part, head) in (0..3).flat_map(|part| (0..self.heads).map(move |head| (part, head))) {
                for offset in 0..kept.next_multiple_of(PANEL) {
                    let value = if offset < kept {
                        self.at(pixel, part, head, offset)
                    } else {
                        rest(pixel, part, head, offset)
                    };
                    row[column(3, self.heads, part, head, offset)] = value;
                }
            }
        }
        laid_out
    }

    /// Attention over the first `kept` offsets, as the kernel writes it.
    fn reference(&self, kept: usize) -> Vec<f64> {
        let at = |pixel, part, head, offset| f64::from(self.at(pixel, part, head, offset));
        let mut out = vec![0.0; self.pixels() * self.heads * kept];
        for head in 0..self.heads {
            for query in 0..self.pixels() {
                let score = |key: usize| {
                    let dot: f64 = (0..kept).map(|c| at(query, 0, head, c) * at(key, 1, head, c)).sum();
                    dot / (kept as f64).sqrt()
                };
                let scores: Vec<f64> = (0..self.pixels()).map(score).collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|score| (score - most).exp()).sum();
                for (key, score) in scores.iter().enumerate() {
                    let weight = (score - most).exp() / total;
                    for offset in 0..kept {
                        let place = (0..self.heads * kept).find(|&p| head_and_offset(self.heads, p) == (head, offset));
                        out[query * self.heads * kept + place.unwrap()] += weight * at(key, 2, head, offset);
                    }
                }
            }
        }
        out
    }
}

/// Some of the parts of a sample that is laid out with all of them.
fn split(laid_out: &[f32], heads: usize, kept: usize, parts: std::ops::Range<usize>) -> Vec<f32> {
    let (from, to) = (columns(3, heads, kept), columns(parts.len(), heads, kept));
    let mut some = vec![0.0; laid_out.len() / from * to];
    for (from, to) in laid_out.chunks_exact(from).zip(some.chunks_exact_mut(to)) {
        for (part, head) in parts.clone().flat_map(|part| (0..heads).map(move |head| (part, head))) {
            for offset in 0..kept.next_multiple_of(PANEL) {
                let place = column(parts.len(), heads, part - parts.start, head, offset);
                to[place] = from[column(3, heads, part, head, offset)];
            }
        }
    }
    some
}

/// Attention over the first `kept` of `dim` offsets of a map of this size against the reference. The offsets beyond are
/// there where they share a panel with kept ones, or unspecified.
#[track_caller]
fn check(rig: &mut Rig, [height, width]: [usize; 2], heads: usize, [dim, kept]: [usize; 2], sharpness: f32) {
    let parts = |sample| Parts::new(sample, height * width, heads, dim, sharpness);
    let input = |sample| {
        let parts = parts(sample);
        parts.laid_out(
            kept,
            |pixel, part, head, offset| {
                if offset < dim { parts.at(pixel, part, head, offset) } else { f32::NAN }
            },
        )
    };
    let got = rig.run(|workspace, samples| {
        let qkv = map(workspace, [height, width, columns(3, heads, kept)], &joined(samples, input));
        let mut out = workspace.arena.map([samples.len(), height, width, heads * kept]);
        attention(workspace, &qkv, &qkv, heads, kept, &mut out);
        let whole = dense(workspace, out);
        // The same of a map of queries and another one of keys and values.
        let [q, kv] = [0..1, 1..3].map(|parts| {
            let apart = joined(samples, |sample| split(&input(sample), heads, kept, parts.clone()));
            map(workspace, [height, width, columns(parts.len(), heads, kept)], &apart)
        });
        let mut out = workspace.arena.map([samples.len(), height, width, heads * kept]);
        attention(workspace, &q, &kv, heads, kept, &mut out);
        assert!(super::same_bits(&dense(workspace, out), &whole), "q apart from k and v");
        [qkv, q, kv].into_iter().for_each(|map| workspace.arena.put(map));
        whole
    });
    for (sample, got) in got.chunks_exact(got.len() / SAMPLES).enumerate() {
        // A score's rounding error is a relative error of its weight: the sharper, the larger.
        assert_close(got, &parts(sample).reference(kept), 2e-6 * f64::from(sharpness));
    }
}

#[test]
fn attention_matches_plain_f64_loops_for_any_number_of_heads_offsets_and_pixels() {
    let mut rig = Rig::new(1 << 17);
    for (size, heads, dim) in [
        ([1, 1], 1, 1),
        ([1, 1], 3, 20),
        ([2, 1], 2, 5),
        ([3, 5], 1, 16),
        ([3, 5], 4, 17),
        ([4, 4], 2, 33),
        ([7, 7], 1, 64),
        ([7, 7], 3, 20),
        ([5, 13], 2, 40),
        ([14, 14], 1, 50),
        // More keys than a tile has: two tiles, the second almost empty, and three.
        ([27, 19], 1, 20),
        ([32, 33], 2, 7),
    ] {
        check(&mut rig, size, heads, [dim, dim], 1.0);
    }
}

#[test]
fn fewer_offsets_than_there_are_is_the_attention_of_those() {
    let mut rig = Rig::new(1 << 12);
    for heads in [1, 2] {
        for kept in [1, 7, 15, 16, 17, 31, 39] {
            check(&mut rig, [5, 7], heads, [40, kept], 1.0);
        }
    }
}

#[test]
fn scores_far_apart_do_not_overflow() {
    let mut rig = Rig::new(1 << 12);
    for sharpness in [10.0, 100.0] {
        check(&mut rig, [7, 7], 2, [20, 20], sharpness);
        check(&mut rig, [27, 19], 1, [20, 20], sharpness);
    }
}

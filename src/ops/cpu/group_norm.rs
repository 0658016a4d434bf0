//! GroupNorm over any channel -> group table, with affine and optional SiLU in one op.
//!
//! A narrow subnet keeps the groups of the network it was cut from, so groups may have unequal sizes and may interleave.
#![allow(clippy::too_many_arguments, reason = "kernels over plain slices; the layers above bundle these")]

use rayon::prelude::*;

use super::activation::{sigmoid, silu_slope};
use super::simd::vectorised;

/// Which group each channel is normalised with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupTable {
    group_of: Vec<u32>,
    sizes: Vec<u32>,
}

impl GroupTable {
    /// `group_of[c]` is the group of channel `c`. Groups may interleave, and a number that no channel has is an empty
    /// group.
    pub fn new(group_of: Vec<u32>) -> Self {
        let mut sizes = vec![0; group_of.iter().max().map_or(0, |&g| g as usize + 1)];
        for &g in &group_of {
            sizes[g as usize] += 1;
        }
        Self { group_of, sizes }
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.group_of.len()
    }

    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.sizes.len()
    }

    /// Group of each channel.
    pub fn group_of(&self) -> &[u32] {
        &self.group_of
    }

    /// Number of channels of each group.
    pub fn sizes(&self) -> &[u32] {
        &self.sizes
    }

    /// `totals[g]` becomes the mean, over the group's channels and `pixels`, of what `sums` holds by channel.
    fn group_means(&self, sums: &[f64], pixels: usize, totals: &mut [f64]) {
        totals.fill(0.0);
        for (&g, sum) in self.group_of.iter().zip(sums) {
            totals[g as usize] += sum;
        }
        for (total, &size) in totals.iter_mut().zip(&self.sizes) {
            *total /= f64::from(size) * pixels as f64;
        }
    }
}

/// Several rows are handled at a time as one long row, because loops over 5 or 30 channels would not fill the vectors.
#[derive(Clone, Copy)]
struct Tile {
    channels: usize,
    len: usize,
}

impl Tile {
    /// Longest tile worth its scratch: 8 KiB a table, so that several stay in the L1 cache.
    const MAX: usize = 2048;
    /// Values of f32 added up before the sum moves to f64.
    const BLOCK: usize = 32;

    /// The shortest whole number of rows that is at least 64 long and divides into 16 lanes, if that is short enough.
    fn new(channels: usize) -> Self {
        let mut len = channels;
        while (len < 64 || !len.is_multiple_of(16)) && 2 * len <= Self::MAX {
            len *= 2;
        }
        Self { channels, len }
    }

    fn zeros(self) -> Vec<f32> {
        vec![0.0; self.len]
    }

    /// Repeats `value(channel)` over a tile.
    fn fill(self, table: &mut [f32], value: impl Fn(usize) -> f32) {
        let (first, rest) = table.split_at_mut(self.channels);
        for (c, slot) in first.iter_mut().enumerate() {
            *slot = value(c);
        }
        for row in rest.chunks_exact_mut(self.channels) {
            row.copy_from_slice(first);
        }
    }

    /// Moves a tile of f32 sums into f64 sums by channel.
    #[inline(always)]
    fn flush(self, partial: &mut [f32], sums: &mut [f64]) {
        for row in partial.chunks_exact_mut(self.channels) {
            for (slot, sum) in row.iter_mut().zip(sums.iter_mut()) {
                *sum += f64::from(*slot);
                *slot = 0.0;
            }
        }
    }

    /// `sums[c] = Σ_p x[p, c]`
    #[inline(always)]
    fn sum(self, x: &[f32], partial: &mut [f32], sums: &mut [f64]) {
        sums.fill(0.0);
        for block in x.chunks(Self::BLOCK * self.len) {
            let mut quads = block.chunks_exact(4 * self.len);
            for quad in &mut quads {
                let (ab, cd) = quad.split_at(2 * self.len);
                let ((a, b), (c, d)) = (ab.split_at(self.len), cd.split_at(self.len));
                add_rows(partial, a, b, c, d);
            }
            for row in quads.remainder().chunks(self.len) {
                for (s, a) in partial.iter_mut().zip(row) {
                    *s += a;
                }
            }
            self.flush(partial, sums);
        }
    }

    /// `sums[c] = Σ_p (x[p, c] - mean[c])²`
    #[inline(always)]
    fn centred_squares(self, x: &[f32], mean: &[f32], partial: &mut [f32], sums: &mut [f64]) {
        sums.fill(0.0);
        for block in x.chunks(Self::BLOCK * self.len) {
            let mut quads = block.chunks_exact(4 * self.len);
            for quad in &mut quads {
                let (ab, cd) = quad.split_at(2 * self.len);
                let ((a, b), (c, d)) = (ab.split_at(self.len), cd.split_at(self.len));
                add_centred_squares(partial, mean, a, b, c, d);
            }
            for row in quads.remainder().chunks(self.len) {
                for ((s, &m), a) in partial.iter_mut().zip(mean).zip(row) {
                    let a = a - m;
                    *s = a.mul_add(a, *s);
                }
            }
            self.flush(partial, sums);
        }
    }
}

/// Scratch of one sample: mean and 1/σ by group, and the tables that the inner loops read.
struct Sample<'a> {
    table: &'a GroupTable,
    tile: Tile,
    pixels: usize,
    rstd: Vec<f64>,
    sums: Vec<f64>,
    partial: Vec<f32>,
    /// By tile: the group's mean, rounded to f32.
    mean: Vec<f32>,
    /// By tile: scale / σ.
    slope: Vec<f32>,
    /// By tile: shift.
    shift: Vec<f32>,
}

impl<'a> Sample<'a> {
    #[inline(always)]
    fn measure(x: &[f32], scale: &[f32], shift: &[f32], table: &'a GroupTable, eps: f32, pixels: usize) -> Self {
        let channels = table.channels();
        let tile = Tile::new(channels);
        let mut sums = vec![0.0; channels];
        let mut totals = vec![0.0; table.groups()];
        let [mut partial, mut mean, mut slope, mut shifts] = std::array::from_fn(|_| tile.zeros());

        tile.sum(x, &mut partial, &mut sums);
        table.group_means(&sums, pixels, &mut totals);
        tile.fill(&mut mean, |c| totals[table.group_of[c] as usize] as f32);

        tile.centred_squares(x, &mean, &mut partial, &mut sums);
        table.group_means(&sums, pixels, &mut totals);
        let rstd: Vec<f64> = totals.iter().map(|variance| 1.0 / (variance + f64::from(eps)).sqrt()).collect();
        tile.fill(&mut slope, |c| (f64::from(scale[c]) * rstd[table.group_of[c] as usize]) as f32);
        tile.fill(&mut shifts, |c| shift[c]);
        Self { table, tile, pixels, rstd, sums, partial, mean, slope, shift: shifts }
    }

    /// `y = act((x - mean) * slope + shift)`
    #[inline(always)]
    fn normalise(&self, x: &[f32], y: &mut [f32], act: impl Fn(f32) -> f32) {
        for (x, y) in x.chunks(self.tile.len).zip(y.chunks_mut(self.tile.len)) {
            normalise_rows(y, x, &self.mean, &self.slope, &self.shift, &act);
        }
    }

    /// Leaves `dz = dy * slope_of_act(z)` in `dx`, `Σ_p dz` in `dshift` and `Σ_p dz * xhat` in `dscale`.
    #[inline(always)]
    fn through_activation(
        &mut self,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        dscale: &mut [f64],
        dshift: &mut [f64],
        slope_of_act: impl Fn(f32) -> f32,
    ) {
        let len = self.tile.len;
        let block = Tile::BLOCK * len;
        dscale.fill(0.0);
        dshift.fill(0.0);
        let mut partial_scale = self.tile.zeros();
        for ((x, dy), dx) in x.chunks(block).zip(dy.chunks(block)).zip(dx.chunks_mut(block)) {
            for ((x, dy), dx) in x.chunks(len).zip(dy.chunks(len)).zip(dx.chunks_mut(len)) {
                let tables = (&self.mean[..], &self.slope[..], &self.shift[..]);
                activation_gradient_rows(dx, x, dy, tables, &mut self.partial, &mut partial_scale, &slope_of_act);
            }
            self.tile.flush(&mut self.partial, dshift);
            self.tile.flush(&mut partial_scale, dscale);
        }
        for (sum, &g) in dscale.iter_mut().zip(&self.table.group_of) {
            *sum *= self.rstd[g as usize];
        }
    }

    /// Turns the `dz` in `dx` into the gradient of x: `rstd * (dz * scale - m1 - xhat * m2)`.
    #[inline(always)]
    fn through_normalisation(&mut self, x: &[f32], dx: &mut [f32], scale: &[f32], dscale: &[f64], dshift: &[f64]) {
        let table = self.table;
        let [mut m1, mut m2] = std::array::from_fn(|_| vec![0.0; table.groups()]);
        for (gradient, mean) in [(dshift, &mut m1), (dscale, &mut m2)] {
            for ((sum, &scale), gradient) in self.sums.iter_mut().zip(scale).zip(gradient) {
                *sum = f64::from(scale) * gradient;
            }
            table.group_means(&self.sums, self.pixels, mean);
        }
        let mut offset = self.tile.zeros();
        let mut pull = self.tile.zeros();
        let group = |c: usize| table.group_of[c] as usize;
        self.tile.fill(&mut offset, |c| (-self.rstd[group(c)] * m1[group(c)]) as f32);
        self.tile.fill(&mut pull, |c| (-self.rstd[group(c)].powi(2) * m2[group(c)]) as f32);
        for (x, dx) in x.chunks(self.tile.len).zip(dx.chunks_mut(self.tile.len)) {
            normalisation_gradient_rows(dx, x, &self.mean, &self.slope, &pull, &offset);
        }
    }
}

// The inner loops, on slices cut to one length so that no bounds check stands in the way of LLVM's vectoriser.

/// `sum += a + b + c + d`
#[inline(always)]
fn add_rows(sum: &mut [f32], a: &[f32], b: &[f32], c: &[f32], d: &[f32]) {
    let n = sum.len();
    let (a, b, c, d) = (&a[..n], &b[..n], &c[..n], &d[..n]);
    for i in 0..n {
        sum[i] += (a[i] + b[i]) + (c[i] + d[i]);
    }
}

/// `sum += (a - mean)² + (b - mean)² + (c - mean)² + (d - mean)²`
#[inline(always)]
fn add_centred_squares(sum: &mut [f32], mean: &[f32], a: &[f32], b: &[f32], c: &[f32], d: &[f32]) {
    let n = sum.len();
    let (mean, a, b, c, d) = (&mean[..n], &a[..n], &b[..n], &c[..n], &d[..n]);
    for i in 0..n {
        let m = mean[i];
        let (a, b, c, d) = (a[i] - m, b[i] - m, c[i] - m, d[i] - m);
        sum[i] += a.mul_add(a, b * b) + c.mul_add(c, d * d);
    }
}

/// `y = act((x - mean) * slope + shift)`
#[inline(always)]
fn normalise_rows(y: &mut [f32], x: &[f32], mean: &[f32], slope: &[f32], shift: &[f32], act: &impl Fn(f32) -> f32) {
    let n = y.len();
    let (x, mean, slope, shift) = (&x[..n], &mean[..n], &slope[..n], &shift[..n]);
    for i in 0..n {
        y[i] = act((x[i] - mean[i]).mul_add(slope[i], shift[i]));
    }
}

/// `dx = dz`, `sum_shift += dz`, `sum_scale += dz * (x - mean)`; the tables are mean, slope and shift.
#[inline(always)]
fn activation_gradient_rows(
    dx: &mut [f32],
    x: &[f32],
    dy: &[f32],
    (mean, slope, shift): (&[f32], &[f32], &[f32]),
    sum_shift: &mut [f32],
    sum_scale: &mut [f32],
    slope_of_act: &impl Fn(f32) -> f32,
) {
    let n = dx.len();
    let (x, dy, mean, slope, shift) = (&x[..n], &dy[..n], &mean[..n], &slope[..n], &shift[..n]);
    let (sum_shift, sum_scale) = (&mut sum_shift[..n], &mut sum_scale[..n]);
    for i in 0..n {
        let centred = x[i] - mean[i];
        let dz = dy[i] * slope_of_act(centred.mul_add(slope[i], shift[i]));
        dx[i] = dz;
        sum_shift[i] += dz;
        sum_scale[i] = dz.mul_add(centred, sum_scale[i]);
    }
}

/// `dx = dx * slope + (x - mean) * pull + offset`
#[inline(always)]
fn normalisation_gradient_rows(dx: &mut [f32], x: &[f32], mean: &[f32], slope: &[f32], pull: &[f32], offset: &[f32]) {
    let n = dx.len();
    let (x, mean, slope, pull, offset) = (&x[..n], &mean[..n], &slope[..n], &pull[..n], &offset[..n]);
    for i in 0..n {
        dx[i] = dx[i].mul_add(slope[i], (x[i] - mean[i]).mul_add(pull[i], offset[i]));
    }
}

/// The [C] that sample `b` uses of a [C] or [B, C] parameter.
fn of_sample(parameter: &[f32], b: usize, channels: usize) -> &[f32] {
    if parameter.len() == channels { parameter } else { &parameter[b * channels..][..channels] }
}

/// `y = act(xhat * scale + shift)` with `xhat = (x - mean_g) / sqrt(var_g + eps)`: Wu & He 2018, eq. 1-3.
///
/// x and y are [B, P, C]; mean and biased variance are over the pixels and channels of one group of one sample. `scale`
/// and `shift` are [C], shared by all samples, or [B, C]. `act` is SiLU or nothing. A sample's result does not depend on
/// the batch around it, nor on the number of threads.
pub fn forward(
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    table: &GroupTable,
    eps: f32,
    silu: bool,
    batch: usize,
    pixels: usize,
    y: &mut [f32],
) {
    let channels = table.channels();
    check(channels, batch, pixels, &[x, y], &[scale, shift]);
    if x.is_empty() {
        return;
    }
    let sample = pixels * channels;
    x.par_chunks_exact(sample).zip(y.par_chunks_exact_mut(sample)).enumerate().for_each(|(b, (x, y))| {
        let (scale, shift) = (of_sample(scale, b, channels), of_sample(shift, b, channels));
        vectorised(
            #[inline(always)]
            || {
                let sample = Sample::measure(x, scale, shift, table, eps, pixels);
                if silu {
                    sample.normalise(
                        x,
                        y,
                        #[inline(always)]
                        |z| z * sigmoid(z),
                    );
                } else {
                    sample.normalise(
                        x,
                        y,
                        #[inline(always)]
                        |z| z,
                    );
                }
            },
        );
    });
}

/// Gradients of [`forward`] at `x`, given `dy` [B, P, C]; statistics and pre-activations are computed again.
///
/// With `dz = dy * act'(z)`: `dshift = Σ_p dz`, `dscale = Σ_p dz * xhat`, and
/// `dx = (dz * scale - mean_g(dz * scale) - xhat * mean_g(dz * scale * xhat)) / σ_g`. `dscale` and `dshift` have the
/// lengths of `scale` and `shift`; where those are shared, samples are added in order, in f64. All three are overwritten.
pub fn backward(
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    table: &GroupTable,
    eps: f32,
    silu: bool,
    batch: usize,
    pixels: usize,
    dy: &[f32],
    dx: &mut [f32],
    dscale: &mut [f32],
    dshift: &mut [f32],
) {
    let channels = table.channels();
    check(channels, batch, pixels, &[x, dy, dx], &[scale, shift]);
    assert!(dscale.len() == scale.len() && dshift.len() == shift.len());
    dscale.fill(0.0);
    dshift.fill(0.0);
    if x.is_empty() {
        return;
    }
    let sample = pixels * channels;
    // By sample: dscale, then dshift.
    let mut gradients = vec![0.0f64; batch * 2 * channels];
    (x.par_chunks_exact(sample).zip(dy.par_chunks_exact(sample)).zip(dx.par_chunks_exact_mut(sample)))
        .zip(gradients.par_chunks_exact_mut(2 * channels))
        .enumerate()
        .for_each(|(b, (((x, dy), dx), gradients))| {
            let (scale, shift) = (of_sample(scale, b, channels), of_sample(shift, b, channels));
            let (dscale, dshift) = gradients.split_at_mut(channels);
            vectorised(
                #[inline(always)]
                || {
                    let mut sample = Sample::measure(x, scale, shift, table, eps, pixels);
                    if silu {
                        sample.through_activation(x, dy, dx, dscale, dshift, silu_slope);
                    } else {
                        sample.through_activation(
                            x,
                            dy,
                            dx,
                            dscale,
                            dshift,
                            #[inline(always)]
                            |_| 1.0,
                        );
                    }
                    sample.through_normalisation(x, dx, scale, dscale, dshift);
                },
            );
        });
    collect(&gradients, 0, channels, dscale);
    collect(&gradients, channels, channels, dshift);
}

/// Takes the part of every sample's gradients that starts at `offset`: by sample, or summed in order if `into` is [C].
fn collect(gradients: &[f64], offset: usize, channels: usize, into: &mut [f32]) {
    let parts = gradients.chunks_exact(2 * channels).map(|sample| &sample[offset..][..channels]);
    if into.len() == channels {
        let mut sums = vec![0.0f64; channels];
        for part in parts {
            sums.iter_mut().zip(part).for_each(|(sum, v)| *sum += v);
        }
        into.iter_mut().zip(&sums).for_each(|(into, &sum)| *into = sum as f32);
    } else {
        for (into, part) in into.chunks_exact_mut(channels).zip(parts) {
            into.iter_mut().zip(part).for_each(|(into, &v)| *into = v as f32);
        }
    }
}

fn check(channels: usize, batch: usize, pixels: usize, maps: &[&[f32]], parameters: &[&[f32]]) {
    for map in maps {
        assert_eq!(map.len(), batch * pixels * channels, "a map is [{batch}, {pixels}, {channels}]");
    }
    for parameter in parameters {
        assert!(
            parameter.len() == channels || parameter.len() == batch * channels,
            "a parameter is [{channels}] or [{batch}, {channels}], not [{}]",
            parameter.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::{assert_close, assert_same_in_any_pool, slope, values, widen};

    const EPS: f32 = 1e-5;

    struct Case {
        table: GroupTable,
        batch: usize,
        pixels: usize,
        silu: bool,
        x: Vec<f32>,
        scale: Vec<f32>,
        shift: Vec<f32>,
        dy: Vec<f32>,
    }

    impl Case {
        fn new(table: GroupTable, batch: usize, pixels: usize, per_sample: bool, silu: bool) -> Self {
            let c = table.channels();
            let n = batch * pixels * c;
            let parameters = if per_sample { batch * c } else { c };
            Self {
                x: values(1, n).iter().enumerate().map(|(i, v)| v * (1.0 + (i % c) as f32 * 0.1) + 0.7).collect(),
                scale: values(2, parameters).iter().map(|v| 1.0 + 0.5 * v).collect(),
                shift: values(3, parameters),
                dy: values(4, n),
                table,
                batch,
                pixels,
                silu,
            }
        }

        fn forward(&self) -> Vec<f32> {
            let mut y = vec![f32::NAN; self.x.len()];
            let Self { table, batch, pixels, silu, x, scale, shift, .. } = self;
            forward(x, scale, shift, table, EPS, *silu, *batch, *pixels, &mut y);
            y
        }

        fn backward(&self) -> [Vec<f32>; 3] {
            let [mut dx, mut dscale, mut dshift] =
                [&self.x, &self.scale, &self.shift].map(|like| vec![f32::NAN; like.len()]);
            let Self { table, batch, pixels, silu, x, scale, shift, dy } = self;
            let (dscale_out, dshift_out) = (&mut dscale, &mut dshift);
            backward(x, scale, shift, table, EPS, *silu, *batch, *pixels, dy, &mut dx, dscale_out, dshift_out);
            [dx, dscale, dshift]
        }

        fn reference(&self, x: &[f64], scale: &[f64], shift: &[f64]) -> Vec<f64> {
            let c = self.table.channels();
            let mut y = vec![0.0; x.len()];
            for b in 0..self.batch {
                let parameter = |p: &[f64], ch: usize| if p.len() == c { p[ch] } else { p[b * c + ch] };
                for g in 0..self.table.groups() as u32 {
                    let members: Vec<usize> = (0..c).filter(|&ch| self.table.group_of()[ch] == g).collect();
                    let at = |p: usize, ch: usize| (b * self.pixels + p) * c + ch;
                    let all = || (0..self.pixels).flat_map(|p| members.iter().map(move |&ch| (p, ch)));
                    let n = all().count() as f64;
                    let mean = all().map(|(p, ch)| x[at(p, ch)]).sum::<f64>() / n;
                    let variance = all().map(|(p, ch)| (x[at(p, ch)] - mean).powi(2)).sum::<f64>() / n;
                    for (p, ch) in all() {
                        let xhat = (x[at(p, ch)] - mean) / (variance + f64::from(EPS)).sqrt();
                        let z = xhat * parameter(scale, ch) + parameter(shift, ch);
                        y[at(p, ch)] = if self.silu { z / (1.0 + (-z).exp()) } else { z };
                    }
                }
            }
            y
        }
    }

    fn tables() -> Vec<GroupTable> {
        let mut tables: Vec<_> = [(1, 1), (3, 1), (5, 2), (8, 4), (30, 5), (32, 8), (96, 32), (97, 3)]
            .into_iter()
            .map(|(c, g)| GroupTable::new((0..c).map(|ch| ch * g / c).collect()))
            .collect();
        // Interleaved, unequal, and with an empty group.
        tables.push(GroupTable::new((0..30).map(|ch| ch % 4).collect()));
        tables.push(GroupTable::new((0..96).map(|ch| if ch % 7 == 3 { 5 } else { ch % 3 }).collect()));
        tables
    }

    fn cases() -> impl Iterator<Item = Case> {
        tables().into_iter().flat_map(|table| {
            [1, 3].into_iter().flat_map(move |batch| {
                let table = table.clone();
                [1, 49, 196].into_iter().flat_map(move |pixels| {
                    let table = table.clone();
                    [(false, true), (true, true), (true, false)]
                        .into_iter()
                        .map(move |(per_sample, silu)| Case::new(table.clone(), batch, pixels, per_sample, silu))
                })
            })
        })
    }

    #[test]
    fn forward_matches_plain_f64_loops() {
        for case in cases() {
            let want = case.reference(&widen(&case.x), &widen(&case.scale), &widen(&case.shift));
            assert_close(&case.forward(), &want, 2e-6);
        }
    }

    #[test]
    fn a_large_common_offset_leaves_the_result_accurate() {
        let mut case = Case::new(GroupTable::new((0..32).map(|c| c / 8).collect()), 1, 784, false, true);
        case.x.iter_mut().for_each(|x| *x += 100.0);
        let want = case.reference(&widen(&case.x), &widen(&case.scale), &widen(&case.shift));
        assert_close(&case.forward(), &want, 2e-5);
    }

    #[test]
    fn backward_matches_central_differences_of_the_f64_loops() {
        for case in cases().filter(|case| case.pixels == 49) {
            let (x, scale, shift, dy) = (widen(&case.x), widen(&case.scale), widen(&case.shift), widen(&case.dy));
            let loss = |y: Vec<f64>| y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
            let got = case.backward();
            let pick = |n: usize| (0..n).step_by((n / 7).max(1));
            let check = |got: &[f32], like: &[f64], f: &dyn Fn(&[f64]) -> f64| {
                let want: Vec<f64> = pick(like.len()).map(|i| slope(like, i, f)).collect();
                let got: Vec<f32> = pick(like.len()).map(|i| got[i]).collect();
                assert_close(&got, &want, 1e-5);
            };
            check(&got[0], &x, &|x| loss(case.reference(x, &scale, &shift)));
            check(&got[1], &scale, &|scale| loss(case.reference(&x, scale, &shift)));
            check(&got[2], &shift, &|shift| loss(case.reference(&x, &scale, shift)));
        }
    }

    #[test]
    fn a_sample_has_the_same_bits_alone_and_in_a_batch() {
        for case in cases().filter(|case| case.batch == 3 && case.scale.len() == 3 * case.table.channels()) {
            let (y, [dx, dscale, dshift]) = (case.forward(), case.backward());
            let c = case.table.channels();
            let n = case.pixels * c;
            for b in 0..3 {
                let alone = Case {
                    table: case.table.clone(),
                    batch: 1,
                    x: case.x[b * n..][..n].to_vec(),
                    dy: case.dy[b * n..][..n].to_vec(),
                    scale: case.scale[b * c..][..c].to_vec(),
                    shift: case.shift[b * c..][..c].to_vec(),
                    ..case
                };
                assert_eq!(alone.forward(), y[b * n..][..n]);
                let [dx_alone, dscale_alone, dshift_alone] = alone.backward();
                assert_eq!(dx_alone, dx[b * n..][..n]);
                assert_eq!(dscale_alone, dscale[b * c..][..c]);
                assert_eq!(dshift_alone, dshift[b * c..][..c]);
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let table = GroupTable::new((0..30).map(|ch| ch % 4).collect());
        let case = Case::new(table, 7, 196, false, true);
        assert_same_in_any_pool(|| (case.forward(), case.backward()));
    }
}

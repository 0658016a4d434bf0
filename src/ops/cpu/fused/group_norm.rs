//! GroupNorm's statistics, turned into one multiply-add a value.

use super::map::{Arena, Buffer};
use super::panels::{Line, PANEL, floats, floats_mut, panels};
use super::{Affine, Map, Workspace};
use crate::ops::cpu::group_norm::GroupTable;
use crate::ops::cpu::parts::Parts;
use crate::ops::cpu::simd::vectorised;

/// Pixels summed in f32 before the sum moves to f64; also the share of one task.
const CHUNK: usize = 64;

/// Slopes and shifts by sample and channel.
#[derive(Debug)]
pub struct Normalisation {
    slope: Buffer,
    shift: Buffer,
    lines: usize,
}

/// `y (1 + scale) + shift` of what a norm makes, by sample and channel (FiLM, Perez et al. 2018).
#[derive(Clone, Copy, Debug)]
pub struct Film<'a> {
    /// A sample's begin with the first.
    pub scale: &'a [f32],
    /// A sample's begin with the first.
    pub shift: &'a [f32],
    /// Elements from a sample to the next.
    pub pitch: usize,
}

impl Film<'_> {
    fn apply(&self, sample: usize, slopes: &mut [f32], shifts: &mut [f32]) {
        let (scale, shift) = (&self.scale[sample * self.pitch..], &self.shift[sample * self.pitch..]);
        for (((slope, offset), scale), shift) in slopes.iter_mut().zip(shifts).zip(scale).zip(shift) {
            *slope *= 1.0 + scale;
            *offset = offset.mul_add(1.0 + scale, *shift);
        }
    }
}

impl Normalisation {
    /// What GroupNorm does to maps with these moments, `(x - mean_g) / sqrt(var_g + eps) * scale + shift` (Wu and He 2018,
    /// eq. 1 to 3), as one slope and one shift a channel.
    ///
    /// The channels of `parts` side by side are those of `table`, `scale` and `shift`. Mean and biased variance are over
    /// the pixels and the channels of a group. `film` comes after the rest.
    pub fn new(
        workspace: &mut Workspace,
        parts: &[&Map],
        table: &GroupTable,
        scale: &[f32],
        shift: &[f32],
        eps: f32,
        film: Option<Film>,
    ) -> Self {
        let Workspace { team, arena, .. } = workspace;
        let (batch, pixels) = (parts[0].batch, parts[0].height * parts[0].width);
        let lines = panels(table.channels());
        let chunks = pixels.div_ceil(CHUNK);
        // By sample, chunk and part: sums, then sums of squares, both of x - origin.
        let wide: usize = parts.iter().map(|part| part.pitch() / PANEL).sum();
        let mut sums = arena.lines(batch * chunks * 2 * wide);
        {
            let sums = Parts::new(&mut sums);
            team.run(batch * chunks, |task| {
                let (sample, chunk) = (task / chunks, task % chunks);
                // SAFETY: each task has its own.
                let mut sums = unsafe { sums.slice(task * 2 * wide, 2 * wide) };
                for part in parts {
                    let (mine, rest) = sums.split_at_mut(2 * part.pitch() / PANEL);
                    sums = rest;
                    sum_chunk(part, sample, chunk * CHUNK..pixels.min((chunk + 1) * CHUNK), mine);
                }
            });
        }
        let mut slopes = arena.lines(batch * lines);
        let mut shifts = arena.lines(batch * lines);
        {
            let (slopes, shifts) = (Parts::new(&mut slopes), Parts::new(&mut shifts));
            team.run(batch, |sample| {
                let sums = floats(&sums[sample * chunks * 2 * wide..][..chunks * 2 * wide]);
                // SAFETY: each sample has its own.
                let out = unsafe { (slopes.slice(sample * lines, lines), shifts.slice(sample * lines, lines)) };
                let (slopes, shifts) = (floats_mut(out.0), floats_mut(out.1));
                finish(parts, sample, sums, table, (scale, shift), eps, slopes, shifts);
                if let Some(film) = film {
                    film.apply(sample, &mut slopes[..table.channels()], shifts);
                }
            });
        }
        arena.put_lines(sums);
        Self { slope: slopes, shift: shifts, lines }
    }

    /// As a layer reads it.
    pub fn affine(&self, silu: bool) -> Affine<'_> {
        Affine { slope: floats(&self.slope), shift: floats(&self.shift), pitch: self.lines * PANEL, silu }
    }

    /// Gives the buffers back.
    pub fn put(self, arena: &mut Arena) {
        arena.put_lines(self.slope);
        arena.put_lines(self.shift);
    }
}

/// Sums of `x - origin` and of its squares by channel, where the origin is the sample's first pixel: near enough to the
/// mean that the variance does not drown in the difference of two large sums.
fn sum_chunk(part: &Map, sample: usize, pixels: std::ops::Range<usize>, sums: &mut [Line]) {
    let pitch = part.pitch();
    let data = &part.data()[sample * part.sample()..][..part.sample()];
    let (origin, rows) = (&data[..pitch], &data[pixels.start * pitch..pixels.end * pitch]);
    let (first, second) = sums.split_at_mut(pitch / PANEL);
    vectorised(
        #[inline(always)]
        || {
            // Two lines at a time: sums of one would wait for each other.
            let mut line = 0;
            while line < first.len() {
                let wide = 2.min(first.len() - line);
                let o: [[f32; PANEL]; 2] = std::array::from_fn(|j| chunk(origin, line + j.min(wide - 1)));
                let mut s = [[0.0f32; PANEL]; 2];
                let mut q = [[0.0f32; PANEL]; 2];
                for row in rows.chunks_exact(pitch) {
                    for j in 0..2 {
                        let x = chunk(row, line + j.min(wide - 1));
                        for i in 0..PANEL {
                            let d = x[i] - o[j][i];
                            s[j][i] += d;
                            q[j][i] = d.mul_add(d, q[j][i]);
                        }
                    }
                }
                for j in 0..wide {
                    (first[line + j], second[line + j]) = (Line(s[j]), Line(q[j]));
                }
                line += wide;
            }
        },
    );
}

#[inline(always)]
fn chunk(row: &[f32], line: usize) -> [f32; PANEL] {
    *row[line * PANEL..].first_chunk().expect("rows are whole lines")
}

/// Adds the chunks up, in order and in f64, joins the channels of each group (Chan et al. 1983, eq. 2.1) and writes what
/// that makes of scale and shift.
#[expect(clippy::too_many_arguments, reason = "one sample's share of `Normalisation::new`")]
fn finish(
    parts: &[&Map],
    sample: usize,
    sums: &[f32],
    table: &GroupTable,
    (scale, shift): (&[f32], &[f32]),
    eps: f32,
    slopes: &mut [f32],
    shifts: &mut [f32],
) {
    thread_local!(static SCRATCH: std::cell::RefCell<Vec<f64>> = const { std::cell::RefCell::new(Vec::new()) });
    let pixels = (parts[0].height * parts[0].width) as f64;
    let (channels, groups) = (table.channels(), table.groups());
    let wide: usize = parts.iter().map(|part| part.pitch()).sum();
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        scratch.resize(2 * channels + 2 * groups, 0.0);
        let (mean, rest) = scratch.split_at_mut(channels);
        let (spread, rest) = rest.split_at_mut(channels);
        let (group_mean, group_spread) = rest.split_at_mut(groups);
        // First sums, then sums of squares.
        for chunk in sums.chunks_exact(2 * wide) {
            let (mut place, mut first) = (0, 0);
            for part in parts {
                let (pitch, n) = (part.pitch(), part.channels);
                let (s, q) = (&chunk[place..][..n], &chunk[place + pitch..][..n]);
                for (((mean, spread), s), q) in mean[first..].iter_mut().zip(&mut spread[first..]).zip(s).zip(q) {
                    *mean += f64::from(*s);
                    *spread += f64::from(*q);
                }
                place += 2 * pitch;
                first += n;
            }
        }
        let mut first = 0;
        for part in parts {
            let origin = &part.data()[sample * part.sample()..];
            for c in 0..part.channels {
                let sum = mean[first + c];
                spread[first + c] -= sum * sum / pixels;
                mean[first + c] = f64::from(origin[c]) + sum / pixels;
            }
            first += part.channels;
        }
        for (&group, mean) in table.group_of().iter().zip(&*mean) {
            group_mean[group as usize] += mean;
        }
        for (mean, &size) in group_mean.iter_mut().zip(table.sizes()) {
            *mean /= f64::from(size);
        }
        for ((&group, mean), spread) in table.group_of().iter().zip(&*mean).zip(&*spread) {
            group_spread[group as usize] += spread + pixels * (mean - group_mean[group as usize]).powi(2);
        }
        for (spread, &size) in group_spread.iter_mut().zip(table.sizes()) {
            let variance = *spread / (f64::from(size) * pixels);
            *spread = 1.0 / (variance + f64::from(eps)).sqrt();
        }
        for (c, &group) in table.group_of().iter().enumerate() {
            let slope = f64::from(scale[c]) * group_spread[group as usize];
            slopes[c] = slope as f32;
            shifts[c] = (f64::from(shift[c]) - group_mean[group as usize] * slope) as f32;
        }
    });
}

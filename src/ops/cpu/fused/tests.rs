//! The fused layers against plain f64 loops, and that a sample's bits depend on the sample alone.

mod attention;
mod conv;
mod group_norm;
mod linear;
mod pool;
mod resample;

use super::panels::PANEL;
use super::scratch::with_scratch;
use super::{Affine, Map, Team, Workspace, panels};
use crate::ops::cpu::testing::values;
use std::sync::Barrier;

/// Samples that each layer is tried on.
const SAMPLES: usize = 3;

/// Workspaces of one, two and three threads whose buffers are full of NaN: what a layer finds there must not matter.
struct Rig {
    workspaces: Vec<Workspace>,
    lines: usize,
}

impl Rig {
    /// With scratch of so many lines for each thread.
    fn new(lines: usize) -> Self {
        let workspace = |threads| Workspace::new(Team::new(threads, false));
        Self { workspaces: (1..=3).map(workspace).collect(), lines }
    }

    /// Fills the scratch of every thread with NaN, as the arena does with its buffers in tests.
    fn poison(workspace: &mut Workspace, lines: usize) {
        let Workspace { team, .. } = workspace;
        // Nobody leaves before everybody has come: each thread has one task.
        let threads = team.threads();
        let all = Barrier::new(threads);
        team.run(threads, |_| {
            all.wait();
            with_scratch(lines * PANEL, |scratch| scratch.fill(f32::NAN));
        });
    }

    /// What `layer` makes of samples 0, 1 and 2, having checked that each has the same bits alone, at any place of a
    /// batch and on any number of threads. `layer` takes the samples of a batch and gives back their results in turn.
    #[track_caller]
    fn run(&mut self, layer: impl Fn(&mut Workspace, &[usize]) -> Vec<f32>) -> Vec<f32> {
        let lines = self.lines;
        let run = |workspace: &mut Workspace, samples: &[usize]| {
            Self::poison(workspace, lines);
            let result = layer(workspace, samples);
            assert!(result.iter().all(|value| value.is_finite()), "unspecified content came through");
            result
        };
        let want = run(&mut self.workspaces[0], &[0, 1, 2]);
        let sample = want.len() / SAMPLES;
        for workspace in &mut self.workspaces {
            for batch in [&[0, 1, 2][..], &[0], &[1], &[2], &[2, 0, 1, 0]] {
                let got = run(workspace, batch);
                for (place, (got, &index)) in got.chunks_exact(sample).zip(batch).enumerate() {
                    let threads = workspace.team.threads();
                    let want = &want[index * sample..][..sample];
                    assert!(same_bits(got, want), "sample {index} at {place} of {batch:?} on {threads} threads");
                }
            }
        }
        want
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Reproducible values of a sample.
fn sample_values(seed: u64, sample: usize, len: usize) -> Vec<f32> {
    values(100 * seed + sample as u64, len)
}

/// `of(sample)` of every sample, one after the other.
fn joined(samples: &[usize], of: impl Fn(usize) -> Vec<f32>) -> Vec<f32> {
    samples.iter().flat_map(|&sample| of(sample)).collect()
}

/// A map of these samples; what its pixels have beyond their channels is poisoned.
fn map(workspace: &mut Workspace, [height, width, channels]: [usize; 3], dense: &[f32]) -> Map {
    let batch = dense.len() / (height * width * channels);
    let mut map = workspace.arena.map([batch, height, width, channels]);
    map.data_mut().fill(f32::NAN);
    map.copy_from(dense);
    map
}

/// A map's values without its padding; its buffer goes back.
fn dense(workspace: &mut Workspace, map: Map) -> Vec<f32> {
    let dense = map.pixels().flatten().copied().collect();
    workspace.arena.put(map);
    dense
}

/// A slope and a shift for every sample and channel, on rows of whole lines whose ends are poisoned.
struct Slopes {
    slope: Vec<f32>,
    shift: Vec<f32>,
    pitch: usize,
}

impl Slopes {
    fn new(samples: &[usize], channels: usize) -> Self {
        let pitch = panels::pitch(channels);
        let rows = |seed| {
            joined(samples, |sample| {
                let mut row = sample_values(seed, sample, channels);
                row.resize(pitch, f32::NAN);
                row
            })
        };
        Self { slope: rows(91), shift: rows(92), pitch }
    }

    fn affine(&self, silu: bool) -> Affine<'_> {
        Affine { slope: &self.slope, shift: &self.shift, pitch: self.pitch, silu }
    }
}

fn silu(z: f64) -> f64 {
    z / (1.0 + (-z).exp())
}

/// The values that a source with [`Slopes`] has: `channels` of them a pixel, in f64.
fn activated(sample: usize, channels: usize, silu_follows: Option<bool>, mut x: Vec<f64>) -> Vec<f64> {
    let Some(silu_follows) = silu_follows else { return x };
    let slopes = Slopes::new(&[sample], channels);
    for (i, x) in x.iter_mut().enumerate() {
        *x = *x * f64::from(slopes.slope[i % channels]) + f64::from(slopes.shift[i % channels]);
        if silu_follows {
            *x = silu(*x);
        }
    }
    x
}

/// The pixels of several maps side by side, in f64; each is given as its channels and its values.
fn side_by_side(parts: &[(usize, Vec<f32>)]) -> Vec<f64> {
    let pixels = parts[0].1.len() / parts[0].0;
    let pixel =
        |pixel: usize| parts.iter().flat_map(move |(channels, values)| &values[pixel * channels..][..*channels]);
    (0..pixels).flat_map(pixel).map(|&value| f64::from(value)).collect()
}

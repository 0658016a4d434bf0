//! How much of a set of fake images is real, and how much of the real ones they cover: precision and recall (Kynkäänniemi et
//! al. 2019), density and coverage (Naeem et al. 2020), by balls around features.

use rayon::prelude::*;

/// Which neighbour a ball reaches to.
pub const NEAREST: usize = 3;

/// How two sets of features overlap, as shares but for the density.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// Share of fake features in the ball of a real one.
    pub precision: f64,
    /// Share of real features in the ball of a fake one.
    pub recall: f64,
    /// Real balls around a fake feature, over [`NEAREST`].
    pub density: f64,
    /// Share of real features with a fake one in their ball.
    pub coverage: f64,
}

/// Squared distances are of differences, in f64: the closest calls are decided by 1e-5 of a distance.
fn squared(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

/// The squared distance of each feature to its [`NEAREST`]-th nearest other one.
pub fn radii(features: &[f32], dim: usize) -> Vec<f64> {
    let rows: Vec<&[f32]> = features.chunks_exact(dim).collect();
    let radius = |(index, row): (usize, &&[f32])| {
        let others = rows.iter().enumerate().filter(|&(other, _)| other != index);
        let mut nearest = [f64::INFINITY; NEAREST];
        for (_, other) in others {
            let distance = squared(row, other);
            if distance < nearest[NEAREST - 1] {
                let place = nearest.partition_point(|&near| near <= distance);
                nearest.copy_within(place..NEAREST - 1, place + 1);
                nearest[place] = distance;
            }
        }
        nearest[NEAREST - 1]
    };
    rows.par_iter().enumerate().map(radius).collect()
}

/// How `fake` overlaps with `real`: features `[n, dim]` of more than [`NEAREST`] images each.
pub fn overlap(real: &[f32], fake: &[f32], dim: usize) -> Overlap {
    let (real_radii, fake_radii) = (radii(real, dim), radii(fake, dim));
    let (reals, fakes): (Vec<_>, Vec<_>) = (real.chunks_exact(dim).collect(), fake.chunks_exact(dim).collect());
    // Of each fake feature: the real balls that it is in.
    let inside =
        |fake: &&[f32]| reals.iter().zip(&real_radii).filter(|(real, radius)| squared(real, fake) <= **radius).count();
    let around: Vec<usize> = fakes.par_iter().map(inside).collect();
    let covered = |(real, radius): (&&[f32], &f64)| {
        let distances = || fakes.iter().map(|fake| squared(real, fake));
        let is_recalled = distances().zip(&fake_radii).any(|(distance, radius)| distance <= *radius);
        (is_recalled, distances().any(|distance| distance <= *radius))
    };
    let covered: Vec<(bool, bool)> = reals.par_iter().zip(&real_radii).map(covered).collect();
    let share = |count: usize, of: usize| count as f64 / of as f64;
    Overlap {
        precision: share(around.iter().filter(|&&count| count > 0).count(), fakes.len()),
        recall: share(covered.iter().filter(|(recalled, _)| *recalled).count(), reals.len()),
        density: share(around.iter().sum(), NEAREST * fakes.len()),
        coverage: share(covered.iter().filter(|(_, covered)| *covered).count(), reals.len()),
    }
}

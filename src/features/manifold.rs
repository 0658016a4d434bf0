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
    /// What is counted on the way through the real features.
    struct Counts {
        recalled: usize,
        covered: usize,
        /// Of each fake feature: the real balls that it is in.
        around: Vec<usize>,
    }
    let none = || Counts { recalled: 0, covered: 0, around: vec![0; fakes.len()] };
    let count = |mut counts: Counts, (real, radius): (&&[f32], &f64)| {
        let (mut is_recalled, mut is_covered) = (false, false);
        for ((fake, fake_radius), around) in fakes.iter().zip(&fake_radii).zip(&mut counts.around) {
            let distance = squared(real, fake);
            is_recalled |= distance <= *fake_radius;
            is_covered |= distance <= *radius;
            *around += usize::from(distance <= *radius);
        }
        counts.recalled += usize::from(is_recalled);
        counts.covered += usize::from(is_covered);
        counts
    };
    let sum = |mut a: Counts, b: Counts| {
        a.around.iter_mut().zip(b.around).for_each(|(a, b)| *a += b);
        Counts { recalled: a.recalled + b.recalled, covered: a.covered + b.covered, ..a }
    };
    let Counts { recalled, covered, around } = reals.par_iter().zip(&real_radii).fold(none, count).reduce(none, sum);
    let share = |count: usize, of: usize| count as f64 / of as f64;
    Overlap {
        precision: share(around.iter().filter(|&&count| count > 0).count(), fakes.len()),
        recall: share(recalled, reals.len()),
        density: share(around.iter().sum(), NEAREST * fakes.len()),
        coverage: share(covered, reals.len()),
    }
}

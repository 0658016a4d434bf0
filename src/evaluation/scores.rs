//! How far the images of a plan are from real ones, by what their features say.

use crate::features::kid::{matrix, squared_discrepancy};
use crate::features::manifold::overlap;
use crate::features::sample::mean_and_deviation;
use crate::philox::Stream;
use serde::Serialize;

/// Bootstrap samples of a standard error.
pub const BOOTSTRAP: u64 = 32;
/// Subsets of the kernel distance, and images in each (Binkowski et al. 2018, section 4).
const SUBSETS: usize = 100;
const SUBSET: usize = 1000;
/// The streams of the draws of subsets.
const REAL_SUBSET: u32 = 61;
const FAKE_SUBSET: u32 = 62;

/// A number and its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The number.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

/// The kernel distance: the mean squared discrepancy of 100 subsets of 1,000 images of each set (of all, where there are fewer),
/// drawn without replacement, and its standard error over the subsets.
pub fn kernel(real: &[f32], fake: &[f32], dim: usize) -> Measured {
    let size = SUBSET.min(real.len() / dim).min(fake.len() / dim);
    let of_subset = |subset: usize| {
        let a = matrix(&drawn(real, dim, size, Stream::new(0, REAL_SUBSET, subset as u64)), dim);
        let b = matrix(&drawn(fake, dim, size, Stream::new(0, FAKE_SUBSET, subset as u64)), dim);
        squared_discrepancy(&a, &b)
    };
    let values: Vec<f64> = (0..SUBSETS).map(of_subset).collect();
    let (value, deviation) = mean_and_deviation(&values);
    Measured { value, error: deviation / (values.len() as f64).sqrt() }
}

/// The features of `count` different images.
fn drawn(features: &[f32], dim: usize, count: usize, stream: Stream) -> Vec<f32> {
    let all = features.len() / dim;
    let mut order: Vec<u32> = (0..all as u32).collect();
    let mut drawn = Vec::with_capacity(count * dim);
    // The first places of a shuffle (Fisher and Yates).
    for place in 0..count {
        let other = place + stream.below(place as u64, (all - place) as u32) as usize;
        order.swap(place, other);
        drawn.extend_from_slice(&features[order[place] as usize * dim..][..dim]);
    }
    drawn
}

/// How two sets overlap: see [`crate::features::manifold`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Overlap {
    /// Share of drawn images among real ones.
    pub precision: Measured,
    /// Share of real images among drawn ones.
    pub recall: Measured,
    /// How many real images there are around a drawn one, over 3.
    pub density: f64,
    /// Share of real images with a drawn one near.
    pub coverage: Measured,
}

/// How `fake` overlaps with `real`, both `[n, dim]`. A share's error is that of as many independent images, all else equal.
pub fn overlaps(real: &[f32], fake: &[f32], dim: usize) -> Overlap {
    let found = overlap(real, fake, dim);
    let share = |value: f64, of: &[f32]| {
        let n = (of.len() / dim) as f64;
        Measured { value, error: (value * (1.0 - value) / n).sqrt() }
    };
    Overlap {
        precision: share(found.precision, fake),
        recall: share(found.recall, real),
        density: found.density,
        coverage: share(found.coverage, real),
    }
}

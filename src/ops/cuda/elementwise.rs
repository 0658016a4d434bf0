//! The pass that normalises, activates, concatenates, resamples and adds maps (`kernels/elementwise.cuh`).

use super::map::{Affine, parts};
use super::{Cost, Launch, Map, Precision};
use crate::ops::cpu::resample::Direction;
use bytemuck::NoUninit;

/// Most taps of a filter.
pub const MAX_TAPS: usize = 8;
const THREADS: usize = 256;

/// EDM's resampling by 2 (Karras et al. 2022): as [`crate::ops::cpu::resample`] defines it.
#[derive(Clone, Copy, Debug)]
pub struct Filter<'a> {
    /// Which way.
    pub direction: Direction,
    /// The taps of the 1-D filter, at most [`MAX_TAPS`].
    pub taps: &'a [f32],
    /// Zeros around the map.
    pub pad: usize,
}

impl Filter<'_> {
    /// The side of the output for an input of side `n`.
    pub fn size(&self, n: usize) -> usize {
        self.direction.size(n, self.taps.len(), self.pad)
    }
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Args {
    x: [u64; 2],
    affine: u64,
    residual: u64,
    y: u64,
    widths: [u32; 2],
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    filter: u32,
    taps: u32,
    pad: u32,
    silu: u32,
    weights: [f32; MAX_TAPS],
    scale: f32,
    padding: u32,
}

/// `y = (filter(act(slope x + offset)) + residual) scale`, the channels of the parts of `x` side by side.
///
/// # Panics
/// If the shapes do not fit, or the first of two parts has channels that are no multiple of 8.
#[expect(clippy::too_many_arguments, reason = "what the pass does, named at each call")]
pub fn elementwise(
    precision: Precision,
    x: &[&Map],
    affine: Option<Affine>,
    silu: bool,
    filter: Option<Filter>,
    residual: Option<&Map>,
    scale: f32,
    y: &Map,
) -> Launch {
    let (widths, bytes) = parts(precision, x);
    let size = |n| filter.map_or(n, |filter| filter.size(n));
    assert_eq!([y.height, y.width], [x[0].height, x[0].width].map(size), "size of the output");
    assert_eq!(y.pitch(), widths.iter().sum::<usize>(), "channels of the output");
    let gain = filter.map_or(1.0, |filter| filter.direction.gain().sqrt());
    let taps = filter.map_or(&[][..], |filter| filter.taps);
    let sum: f32 = taps.iter().sum();
    let mut weights = [0.0; MAX_TAPS];
    weights.iter_mut().zip(taps).for_each(|(weight, tap)| *weight = gain * tap / sum);
    let args = Args {
        x: [x[0].address, x.get(1).map_or(0, |map| map.address)],
        affine: affine.map_or(0, |affine| affine.address),
        residual: residual.map_or(0, |map| map.address),
        y: y.address,
        widths: widths.map(|width| width as u32),
        height: x[0].height as u32,
        width: x[0].width as u32,
        out_height: y.height as u32,
        out_width: y.width as u32,
        filter: filter.map_or(0, |filter| if filter.direction == Direction::Down { 1 } else { 2 }),
        taps: taps.len() as u32,
        pad: filter.map_or(0, |filter| filter.pad) as u32,
        silu: silu.into(),
        weights,
        scale,
        padding: 0,
    };
    let vectors = y.pixels() * y.pitch() * precision.bytes() / 16;
    let bytes = bytes + y.bytes(precision) + residual.map_or(0, |map| map.bytes(precision));
    let cost = Cost { bytes: bytes as u64, operations: 0 };
    // What `group_norm` has not counted: SiLU, filter, sum and scale, or a concatenation alone.
    let concatenated = affine.is_none() && x.len() > 1;
    let terms = [silu, filter.is_some(), residual.is_some(), scale != 1.0, concatenated];
    let op_by_op = terms.into_iter().filter(|&term| term).count();
    Launch::new("elementwise", Some(precision), [vectors.div_ceil(THREADS), 1, y.samples], &args, cost, op_by_op)
}

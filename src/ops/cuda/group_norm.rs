//! GroupNorm's statistics over a channel -> group table (`kernels/group_norm.cuh`).

use super::map::{Affine, parts};
use super::{Cost, Launch, Map, Precision};
use crate::ops::cpu::group_norm::GroupTable;
use bytemuck::NoUninit;

/// Pixels that a block sums up, at least.
const CHUNK: usize = 64;
/// Blocks of a sample, at most: one of them joins what all have summed up.
const CHUNKS: usize = 128;

/// Pixels that a block sums up of a map of so many: a matter of the map alone, so that a sample's sums do not depend on its batch.
fn chunk(pixels: usize) -> usize {
    pixels.div_ceil(CHUNKS).max(CHUNK)
}

/// A norm's parameters and groups in a machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norm {
    /// f32 by channel.
    pub scale: u64,
    /// f32 by channel.
    pub shift: u64,
    /// Its groups.
    pub table: Table,
}

/// A [`GroupTable`] in a machine's memory: u32, the channels of the first group, then those of the second and so on; then where
/// each group's begin, and where the last one's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Where it is.
    pub address: u64,
    /// Its channels.
    pub channels: usize,
    /// Its groups.
    pub groups: usize,
}

impl Table {
    /// The words of a table, and what they describe once they are at `address`.
    pub fn new(table: &GroupTable, address: u64) -> (Vec<u32>, Self) {
        let mut channels: Vec<u32> = (0..table.channels() as u32).collect();
        channels.sort_by_key(|&channel| table.group_of()[channel as usize]);
        let mut starts = vec![0];
        for size in table.sizes() {
            starts.push(starts[starts.len() - 1] + size);
        }
        ([channels, starts].concat(), Self { address, channels: table.channels(), groups: table.groups() })
    }
}

/// A scale s and a shift t by sample and channel on what is normalised, `x (1 + s) + t`: elements `[samples, pitch]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Film {
    /// Where the scales are.
    pub scale: u64,
    /// Where the shifts are.
    pub shift: u64,
    /// Elements from sample to sample, of both.
    pub pitch: usize,
}

/// The memory that [`group_norm`] needs beside its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// [`sums_bytes`] of it.
    pub sums: u64,
    /// u32 by sample, zeros: zeros again afterwards.
    pub counters: u64,
}

/// Bytes of the sums that [`group_norm`] takes on the way.
pub fn sums_bytes(precision: Precision, x: &[&Map]) -> usize {
    let width: usize = parts(precision, x).0.iter().sum();
    x[0].samples * x[0].pixels().div_ceil(chunk(x[0].pixels())) * 2 * width * 4
}

/// Bytes of its result.
pub fn affine_bytes(precision: Precision, x: &[&Map]) -> usize {
    let width: usize = parts(precision, x).0.iter().sum();
    x[0].samples * 2 * width * 4
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Args {
    x: [u64; 2],
    scale: u64,
    shift: u64,
    members: u64,
    starts: u64,
    sums: u64,
    counters: u64,
    affine: u64,
    film_scale: u64,
    film_shift: u64,
    channels: [u32; 2],
    widths: [u32; 2],
    pixels: u32,
    chunk: u32,
    chunks: u32,
    groups: u32,
    eps: f32,
    film_pitch: u32,
}

/// What GroupNorm does to the channels of `x` side by side, `(x - mean_g) / sqrt(var_g + eps) scale + shift` (Wu and He 2018,
/// eq. 1 to 3), as one slope and one offset a channel; then what `film` does (Perez et al. 2018), in the same.
///
/// # Panics
/// If the shapes do not fit.
pub fn group_norm(
    precision: Precision,
    x: &[&Map],
    norm: &Norm,
    eps: f32,
    film: Option<Film>,
    scratch: Scratch,
    affine: Affine,
) -> Launch {
    let (widths, bytes) = parts(precision, x);
    let channels = [x[0].channels, x.get(1).map_or(0, |map| map.channels)];
    assert_eq!(norm.table.channels, channels.iter().sum::<usize>(), "channels of the norm");
    let chunk = chunk(x[0].pixels());
    let chunks = x[0].pixels().div_ceil(chunk);
    let args = Args {
        x: [x[0].address, x.get(1).map_or(0, |map| map.address)],
        scale: norm.scale,
        shift: norm.shift,
        members: norm.table.address,
        starts: norm.table.address + 4 * norm.table.channels as u64,
        sums: scratch.sums,
        counters: scratch.counters,
        affine: affine.address,
        film_scale: film.map_or(0, |film| film.scale),
        film_shift: film.map_or(0, |film| film.shift),
        channels: channels.map(|channels| channels as u32),
        widths: widths.map(|width| width as u32),
        pixels: x[0].pixels() as u32,
        chunk: chunk as u32,
        chunks: chunks as u32,
        groups: norm.table.groups as u32,
        eps,
        film_pitch: film.map_or(0, |film| film.pitch) as u32,
    };
    let filmed = film.map_or(0, |_| 2 * x[0].samples * norm.table.channels * precision.bytes());
    let cost = Cost { bytes: (bytes + affine_bytes(precision, x) + filmed) as u64, operations: 0 };
    // GroupNorm with what `map` applies of it: 2 sums, 2 divisions, subtraction, square, eps, root, division, scale, shift; two
    // conversions around 16 bits; concatenation; 1 + s, product, sum.
    let filmed = if film.is_some() { 3 } else { 0 };
    let op_by_op = if precision == Precision::F32 { 11 } else { 13 } + x.len() - 1 + filmed;
    Launch::new("group_norm", Some(precision), [chunks, 1, x[0].samples], &args, cost, op_by_op)
}

//! Attention of queries to keys, in several heads (`kernels/attention.cuh`).

use super::{Cost, Launch, Map, Precision, pitch};
use bytemuck::NoUninit;

/// Queries and channels of a block.
const QUERIES: usize = 64;
const CHANNELS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Args {
    q: u64,
    k: u64,
    v: u64,
    y: u64,
    queries: u32,
    keys: u32,
    heads: u32,
    dim: u32,
    pitch: u32,
    q_stride: u32,
    kv_stride: u32,
    scale: f32,
}

/// Offsets that lie side by side in what [`attention`] makes: 16 bytes of the narrowest values.
const UNIT: usize = 8;

/// The channel of what [`attention`] makes that holds an offset of a head.
///
/// Heads take turns, a unit of 8 offsets each. So the channels of a subnet, which keeps fewer offsets of every head, are the
/// first of those of a wider one, and of the weights that read them it takes a prefix of the rows.
pub fn channel(heads: usize, head: usize, offset: usize) -> usize {
    (offset / UNIT * heads + head) * UNIT + offset % UNIT
}

/// The head and the offset that a channel of what [`attention`] makes holds; the inverse of [`channel`].
pub fn place(heads: usize, channel: usize) -> (usize, usize) {
    let (unit, within) = (channel / UNIT, channel % UNIT);
    (unit % heads, unit / heads * UNIT + within)
}

/// Channels of what [`attention`] makes of heads of `dim` offsets: up to the last that one of them takes.
pub fn channels(heads: usize, dim: usize) -> usize {
    if heads == 1 { dim } else { heads * pitch(dim) }
}

/// `y = softmax(q k^T / sqrt(dim)) v` by sample and head: a query for each pixel of `q`, whose first channels are `pitch(dim)` for each
/// head; a key and a value for each of `kv`, whose last channels are as many for the keys and then for the values. Both may be one map.
/// `y` has [`channels`], a head's where [`channel`] says, zeros between `dim` and `pitch(dim)`.
///
/// # Panics
/// If the shapes do not fit.
pub fn attention(precision: Precision, [q, kv]: [&Map; 2], heads: usize, dim: usize, y: &Map) -> Launch {
    let (queries, keys, step) = (q.pixels(), kv.pixels(), heads * pitch(dim));
    assert!(q.pitch() >= step && kv.pitch() >= 2 * step && y.pitch() == step, "channels of attention");
    assert!(y.pixels() == queries && q.samples == y.samples && kv.samples == y.samples, "sizes of attention");
    let value = |from_last: usize| kv.address + ((kv.pitch() - from_last * step) * precision.bytes()) as u64;
    let args = Args {
        q: q.address,
        k: value(2),
        v: value(1),
        y: y.address,
        queries: queries as u32,
        keys: keys as u32,
        heads: heads as u32,
        dim: dim as u32,
        pitch: pitch(dim) as u32,
        q_stride: q.pitch() as u32,
        kv_stride: kv.pitch() as u32,
        scale: 1.0 / (dim as f32).sqrt(),
    };
    let elements = y.samples * step * (2 * queries + 2 * keys);
    let cost = Cost {
        bytes: (elements * precision.bytes()) as u64,
        operations: 4 * (y.samples * queries * keys * heads * dim) as u64,
    };
    let grid = [queries.div_ceil(QUERIES), heads * pitch(dim).div_ceil(CHANNELS), y.samples];
    // Queries, keys and values made contiguous, two products, scale, softmax over the last dimension, transposition.
    Launch::new("attention", Some(precision), grid, &args, cost, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_offsets_are_a_prefix_of_the_channels() {
        for heads in 1..5 {
            let of = |dim: usize| -> Vec<usize> {
                let places = (0..heads).flat_map(|head| (0..pitch(dim)).map(move |offset| (head, offset)));
                let mut taken: Vec<usize> = places.map(|(head, offset)| channel(heads, head, offset)).collect();
                taken.sort_unstable();
                taken
            };
            for dim in 1..40 {
                assert_eq!(of(dim), (0..heads * pitch(dim)).collect::<Vec<_>>(), "{heads} heads of {dim}");
            }
            for at in 0..200 {
                let (head, offset) = place(heads, at);
                assert_eq!(channel(heads, head, offset), at);
            }
        }
    }
}

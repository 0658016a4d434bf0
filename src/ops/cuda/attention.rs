//! Attention of every pixel to every pixel (`kernels/attention.cuh`).

use super::{Cost, Element, Launch, Map, pitch};
use bytemuck::NoUninit;

/// Queries and channels of a block.
const QUERIES: usize = 64;
const CHANNELS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Args {
    x: u64,
    y: u64,
    pixels: u32,
    dim: u32,
    pitch: u32,
    scale: f32,
}

/// `y = softmax(q k^T / sqrt(dim)) v` by sample, with one head: `qkv` has `pitch(dim)` channels for each of q, k and v, and `y`
/// has `dim` channels.
///
/// # Panics
/// If the shapes do not fit.
pub fn attention(element: Element, qkv: &Map, y: &Map) -> Launch {
    let (dim, pixels) = (y.channels, y.pixels());
    assert!(qkv.pitch() == 3 * pitch(dim) && qkv.pixels() == pixels && qkv.samples == y.samples, "shapes of attention");
    let args = Args {
        x: qkv.address,
        y: y.address,
        pixels: pixels as u32,
        dim: dim as u32,
        pitch: pitch(dim) as u32,
        scale: 1.0 / (dim as f32).sqrt(),
    };
    let cost = Cost {
        bytes: (qkv.bytes(element) + y.bytes(element)) as u64,
        operations: 4 * (y.samples * pixels * pixels * dim) as u64,
    };
    let grid = [pixels.div_ceil(QUERIES), pitch(dim).div_ceil(CHANNELS), y.samples];
    // Queries, keys and values made contiguous, two products, scale, softmax over the last dimension, transposition.
    Launch::new("attention", Some(element), grid, &args, cost, 8)
}

//! LayerNorm over the channels of each pixel (`kernels/layer_norm.cuh`).

use super::{Cost, Element, Launch, Map};
use bytemuck::NoUninit;

/// Pixels of a block.
const PIXELS: usize = 4;

/// A norm's parameters in a machine's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    /// f32 by channel, zeros up to the pitch.
    pub scale: u64,
    /// f32 by channel, zeros up to the pitch.
    pub shift: u64,
    /// Added to the variance.
    pub eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Args {
    x: u64,
    scale: u64,
    shift: u64,
    y: u64,
    pixels: u32,
    channels: u32,
    pitch: u32,
    eps: f32,
}

/// `y = (x - mean) / sqrt(var + eps) scale + shift` with the mean and the biased variance of each pixel's channels (Ba et al.
/// 2016, eq. 4).
///
/// # Panics
/// If the shapes differ.
pub fn layer_norm(element: Element, x: &Map, norm: &LayerNorm, y: &Map) -> Launch {
    assert_eq!(Map { address: y.address, ..*x }, *y, "a norm keeps the shape");
    let pixels = x.samples * x.pixels();
    let args = Args {
        x: x.address,
        scale: norm.scale,
        shift: norm.shift,
        y: y.address,
        pixels: pixels as u32,
        channels: x.channels as u32,
        pitch: x.pitch() as u32,
        eps: norm.eps,
    };
    let cost = Cost { bytes: (x.bytes(element) + y.bytes(element) + 8 * x.channels) as u64, operations: 0 };
    Launch::new("layer_norm", Some(element), [pixels.div_ceil(PIXELS), 1, 1], &args, cost, 1)
}

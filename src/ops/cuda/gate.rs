//! One half of the channels by GELU of the other (`kernels/gate.cuh`).

use super::{Cost, Launch, Map, Precision};
use bytemuck::NoUninit;

const THREADS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Args {
    x: u64,
    y: u64,
    vectors: u64,
    pitch: u32,
    padding: u32,
}

/// `y = a gelu(b)` (GEGLU, Shazeer 2020) of the two halves a, b of the channels of `x`, each as far apart as a pixel of `y` is long.
///
/// # Panics
/// If the shapes do not fit.
pub fn gate(precision: Precision, x: &Map, y: &Map) -> Launch {
    assert_eq!((x.samples, x.pixels(), x.pitch()), (y.samples, y.pixels(), 2 * y.pitch()), "two halves");
    let vectors = y.bytes(precision) / 16;
    let args = Args { x: x.address, y: y.address, vectors: vectors as u64, pitch: y.pitch() as u32, padding: 0 };
    let cost = Cost { bytes: (x.bytes(precision) + y.bytes(precision)) as u64, operations: 0 };
    // Two halves made contiguous, GELU, product.
    Launch::new("gate", Some(precision), [vectors.div_ceil(THREADS), 1, 1], &args, cost, 4)
}

//! Between images and sequences of tokens (`kernels/tokens.cuh`). A sequence is a map of one column.

use super::{Cost, Element, Launch, Map, pitch};
use bytemuck::NoUninit;

/// Most vectors before the pixels of a map.
pub const MAX_FRONT: usize = 2;
const THREADS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct TokensArgs {
    front: [u64; MAX_FRONT],
    x: u64,
    positions: u64,
    y: u64,
    fronts: u32,
    pixels: u32,
    pitch: u32,
    padding: u32,
}

/// Positions as [`tokens`] reads them: f32 `[tokens, pitch(channels)]` of `[tokens, channels]`, zeros behind the channels.
pub fn pack_positions(channels: usize, positions: &[f32]) -> Vec<f32> {
    let fill = pitch(channels) - channels;
    positions.chunks_exact(channels).flat_map(|token| token.iter().copied().chain(vec![0.0; fill])).collect()
}

/// `y = (front, then the pixels of x) + positions`, token by token: each of `front` is one sample whose pixels are the batch's
/// vectors, `positions` are of [`pack_positions`].
///
/// # Panics
/// If the shapes do not fit, or there are more than [`MAX_FRONT`] of `front`.
pub fn tokens(element: Element, front: &[&Map], x: &Map, positions: u64, y: &Map) -> Launch {
    assert!(front.len() <= MAX_FRONT, "few tokens before those of the map");
    let of_batch = |map: &&Map| (map.samples, map.pixels(), map.channels) == (1, x.samples, x.channels);
    assert!(front.iter().all(of_batch), "a vector for each sample");
    let count = front.len() + x.pixels();
    assert_eq!((y.samples, y.pixels(), y.channels), (x.samples, count, x.channels), "size of the output");
    let args = TokensArgs {
        front: [0, 1].map(|index| front.get(index).map_or(0, |map: &&Map| map.address)),
        x: x.address,
        positions,
        y: y.address,
        fronts: front.len() as u32,
        pixels: x.pixels() as u32,
        pitch: x.pitch() as u32,
        padding: 0,
    };
    let vectors = count * y.pitch() * element.bytes() / 16;
    let read = x.bytes(element) + front.iter().map(|map| map.bytes(element)).sum::<usize>() + 4 * count * y.channels;
    let cost = Cost { bytes: (read + y.bytes(element)) as u64, operations: 0 };
    // Concatenation and sum.
    let op_by_op = 1 + usize::from(!front.is_empty());
    Launch::new("tokens", Some(element), [vectors.div_ceil(THREADS), 1, y.samples], &args, cost, op_by_op)
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct UnpatchArgs {
    x: u64,
    y: u64,
    fronts: u32,
    rows: u32,
    columns: u32,
    patch: u32,
    channels: u32,
    x_pitch: u32,
    y_pitch: u32,
    padding: u32,
}

/// The image whose patches of side `patch` are the tokens behind the first `fronts`: `y[i p + a, j p + b, c] =
/// x[fronts + i w + j, (a p + b) channels + c]` for an image of w patches a row.
///
/// # Panics
/// If the shapes do not fit.
pub fn unpatch(element: Element, x: &Map, fronts: usize, patch: usize, y: &Map) -> Launch {
    assert!(y.height.is_multiple_of(patch) && y.width.is_multiple_of(patch), "an image of whole patches");
    let [rows, columns] = [y.height, y.width].map(|side| side / patch);
    let shape = (y.samples, fronts + rows * columns, patch * patch * y.channels);
    assert_eq!((x.samples, x.pixels(), x.channels), shape, "tokens of patches");
    let args = UnpatchArgs {
        x: x.address,
        y: y.address,
        fronts: fronts as u32,
        rows: rows as u32,
        columns: columns as u32,
        patch: patch as u32,
        channels: y.channels as u32,
        x_pitch: x.pitch() as u32,
        y_pitch: y.pitch() as u32,
        padding: 0,
    };
    let vectors = y.pixels() * y.pitch() * element.bytes() / 16;
    let read = y.samples * rows * columns * x.pitch() * element.bytes();
    let cost = Cost { bytes: (read + y.bytes(element)) as u64, operations: 0 };
    // The transposition of rows and patches; the first tokens are left out by a view.
    Launch::new("unpatch", Some(element), [vectors.div_ceil(THREADS), 1, y.samples], &args, cost, 1)
}

//! A denoising step on a GPU: kernels, and how they are launched.
//!
//! `kernels/` holds the kernels. A [`Launch`] says what one of them is to do, a denoising step is a list of them
//! (`nets::on_gpu`), and a [`Accelerator`] runs the list. Lists are made without a device, so what a step costs,
//! how many launches it takes and how much memory it needs can be asked anywhere; and the same list runs on a GPU
//! ([`gpu`], feature `cuda`) or, in tests, on the kernels' emulation on the CPU (`emulation/`).
//!
//! Feature maps are `[samples, height, width, pitch]`, where the pitch is the channels rounded up to a multiple of 8 and
//! what is behind the channels is zero. So every access is of 16 bytes, whatever a subnet's widths are.

pub mod accelerator;
pub mod arena;
pub mod attention;
pub mod conv;
pub mod elementwise;
pub mod embedding;
pub mod gate;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod group_norm;
pub mod launch;
pub mod layer_norm;
pub mod map;
pub mod pixels;
pub mod sampler;
pub mod tokens;

pub use accelerator::{Accelerator, Fault};
pub use arena::Arena;
pub use launch::{Cost, Launch, Precision};
pub use map::Map;

/// Channels up to the next multiple of 8: 16 bytes of the narrowest values.
pub fn pitch(channels: usize) -> usize {
    channels.next_multiple_of(8)
}

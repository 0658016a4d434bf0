//! Numeric kernels: one contract per op, implementations by device.
//!
//! Every op is a candle custom op with a hand-written `bwd`; a [`Tape`] applies it and, in training, records it.
//! Tensors are f32 and channels last.

pub mod act;
pub mod attention;
pub mod conv;
pub mod cpu;
pub mod cuda;
pub mod elementwise;
pub mod group_norm;
pub mod layer_norm;
pub mod pixels;
pub mod pool;
pub mod resample;
pub mod tape;
pub mod tokens;

pub use act::Act;
pub use tape::{Gradients, Tape};

use candle_core::{CpuStorage, Layout, Result, Tensor};

/// The contiguous f32 elements of an op's argument.
fn contiguous<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("{op}: argument of shape {:?} is not contiguous", layout.shape()),
    }
}

/// Runs `then` on the contiguous f32 elements of a CPU tensor.
fn with_slice<T>(tensor: &Tensor, then: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(cpu) => Ok(then(contiguous("with_slice", cpu, layout)?)),
        _ => candle_core::bail!("expected a tensor on the CPU"),
    }
}

/// A gradient in the shape of what it is of.
fn gradient(values: Vec<f32>, of: &Tensor) -> Result<Option<Tensor>> {
    Ok(Some(Tensor::from_vec(values, of.shape(), of.device())?))
}

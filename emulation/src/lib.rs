//! Runs the CUDA kernels of accordion on the CPU, for its tests: no GPU, driver or toolkit is needed.
//!
//! [`launch`] runs the kernels' source, compiled for the host (`cpp/emulator.h` says what is modelled and what is
//! checked), and [`ptx::Module`] what nvcc made of it. Kernels whose names begin with `probe_` (`cpp/probes.cu`) try the
//! emulation itself.

mod native;
pub mod ptx;

pub use native::{Kernel, Order, Sequence, kernels, launch};

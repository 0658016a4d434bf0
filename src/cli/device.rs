//! Flags that say where a subcommand computes.

use crate::Result;
use crate::nets::{self, Model, Opened, Placement, Threads};
use crate::ops::cuda::Element;

/// Where to compute.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Device {
    /// Where to compute: cpu, or a GPU as cuda:0.
    #[arg(long, env = "ACCORDION_DEVICE", default_value = "cpu")]
    pub device: Placement,
    /// The type of weights and activations on a GPU: f32, f16 or bf16.
    #[arg(long, env = "ACCORDION_PRECISION", default_value = "f32")]
    pub precision: Element,
}

impl Device {
    /// The model there, with room for calls on `most` samples; `threads` compute where it is the CPU.
    ///
    /// # Errors
    /// As [`nets::open`].
    pub fn open(&self, model: &Model, most: usize, threads: Threads) -> Result<Box<dyn Opened>> {
        nets::open(model, self.device, self.precision, most, threads)
    }
}

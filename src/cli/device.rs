//! Flags that say where a subcommand computes.

use crate::Result;
use crate::nets::{self, Model, Opened, Placement, Threads};
use crate::ops::cuda::Precision;

/// Where to compute.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Device {
    /// Where to compute: cpu, or a GPU as cuda:0.
    #[arg(long, env = "ACCORDION_DEVICE", default_value = "cpu")]
    pub device: Placement,
    /// The type of weights and activations on a GPU: f32, f16 or bf16.
    #[arg(long, env = "ACCORDION_PRECISION", default_value = "f32")]
    pub precision: Precision,
    /// Gigabytes that the denoiser's weights shall take on the CPU; 0 is no limit. Where Winograd's do not fit, convolutions are
    /// computed by the definition, those of the smallest maps first.
    #[arg(long, env = "ACCORDION_MAX_WEIGHT_GB", default_value_t = 0.0, value_parser = gigabytes)]
    pub max_weight_gb: f64,
}

/// For a flag of gigabytes.
pub(super) fn gigabytes(text: &str) -> std::result::Result<f64, String> {
    let gigabytes = text.trim().parse().ok().filter(|gigabytes| (0.0..=1e6).contains(gigabytes));
    gigabytes.ok_or_else(|| "must be from 0, for no limit, to 1000000".to_owned())
}

impl Device {
    /// The bytes that the weights shall take on the CPU.
    pub fn limit(&self) -> Option<usize> {
        nets::opened::weight_limit(self.max_weight_gb)
    }

    /// The model there, with room for calls on `most` samples; `threads` compute where it is the CPU.
    ///
    /// # Errors
    /// As [`nets::open`].
    pub fn open(&self, model: &Model, most: usize, threads: Threads) -> Result<Box<dyn Opened>> {
        nets::open(model, model.supernet.clone(), self.device, self.precision, most, threads, self.limit())
    }
}

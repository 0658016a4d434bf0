//! `accordion forward`: one denoiser call, to compare with other implementations.

use super::tensors::{Levels, Noisy, TensorFile};
use crate::ImageShape;
use crate::Result;
use crate::files::write_tensors;
use crate::nets::{HostRunner, Model, Threads};
use candle_core::{Device, Tensor};
use std::path::PathBuf;

/// Samples of one pass: it bounds the memory, and changes nothing.
const BATCH: usize = 64;

/// Run one denoiser call on tensors in a file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory.
    #[arg(long, env = "ACCORDION_MODEL")]
    model: PathBuf,
    /// The subnet: `full` or a ratio, such as 0.5.
    #[arg(long, env = "ACCORDION_SUBNET", default_value = "full")]
    subnet: String,
    /// File with `x` [B, C, H, W] and `sigma` [B] or, for a variance preserving model, `xt` and times `t` [B]; for a conditional
    /// model also `class_labels` [B, classes] (zeros without it) or `class_index` [B].
    #[arg(long, env = "ACCORDION_INPUT")]
    input: PathBuf,
    /// File to write `denoised` [B, C, H, W] to, or `noise_pred` where times are given.
    #[arg(long, env = "ACCORDION_OUTPUT")]
    output: PathBuf,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let model = Model::open(&self.model)?;
        let subnet = model.subnet(&self.subnet)?;
        let input = TensorFile::open(&self.input)?;
        let ImageShape { height, width, channels } = model.image();
        let Noisy { x, levels: Levels { sigma, are_times }, classes } = input.noisy(&model.network)?;
        let batch = sigma.len();

        let elements = model.image().elements();
        let mut runner = HostRunner::new(&model, Threads::ALL)?;
        let mut output = Vec::with_capacity(x.len());
        for start in (0..batch).step_by(BATCH) {
            let end = (start + BATCH).min(batch);
            let (x, sigma, classes) = (&x[start * elements..end * elements], &sigma[start..end], &classes[start..end]);
            output.extend(match are_times {
                true => runner.raw(subnet, x, sigma, classes),
                false => runner.call(subnet, x, sigma, classes),
            });
        }
        let output = Tensor::from_vec(output, (batch, height, width, channels), &Device::Cpu)?;
        let output = output.permute((0, 3, 1, 2))?.contiguous()?;
        write_tensors(&self.output, [(if are_times { "noise_pred" } else { "denoised" }, &output)], None)
    }
}

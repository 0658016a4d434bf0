//! `accordion forward`: one denoiser call, to compare with other implementations.

use super::tensors::TensorFile;
use crate::Result;
use crate::files::write_tensors;
use crate::nets::{ImageShape, Model, Runner, Threads};
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
    /// File with `x` [B, C, H, W], `sigma` [B] and, for a conditional model, `class_labels` [B, classes] (zeros without it).
    #[arg(long, env = "ACCORDION_INPUT")]
    input: PathBuf,
    /// File to write `denoised` [B, C, H, W] to.
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
        let (batch, x) = input.images("x", model.image())?;
        let sigma = input.sigma(batch)?;
        let classes = input.classes(&model.network, batch)?;

        let elements = model.image().elements();
        let mut runner = Runner::new(&model, Threads::ALL)?;
        let mut denoised = Vec::with_capacity(x.len());
        for start in (0..batch).step_by(BATCH) {
            let end = (start + BATCH).min(batch);
            let x = &x[start * elements..end * elements];
            denoised.extend(runner.call(subnet, x, &sigma[start..end], &classes[start..end]));
        }
        let denoised = Tensor::from_vec(denoised, (batch, height, width, channels), &Device::Cpu)?;
        let denoised = denoised.permute((0, 3, 1, 2))?.contiguous()?;
        write_tensors(&self.output, [("denoised", &denoised)], None)
    }
}

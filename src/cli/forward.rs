//! `accordion forward`: one call of a network, to compare with other implementations.

mod parts;

use super::tensors::{Levels, Noisy, TensorFile};
use crate::diffusion::Plan;
use crate::diffusion::preconditioning::{Preconditioning, Predicts};
use crate::files::write_tensors;
use crate::nets::{HostRunner, Model, Rows, Threads};
use crate::{Error, ImageShape, Result};
use candle_core::{Device, Tensor};
use std::path::PathBuf;

/// Samples of one pass: it bounds the memory, and changes nothing.
const BATCH: usize = 64;

/// Run one call of a network on tensors in a file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory.
    #[arg(long, env = "ACCORDION_MODEL")]
    model: PathBuf,
    /// Which of the model's networks, or a whole trajectory.
    #[arg(long, env = "ACCORDION_PART", default_value = "denoiser")]
    part: Part,
    /// The subnet of the denoiser, or of the decoder: `full` or a ratio, such as 0.5.
    #[arg(long, env = "ACCORDION_SUBNET", default_value = "full")]
    subnet: String,
    /// The plan of a trajectory; it says its subnets itself.
    #[arg(long, env = "ACCORDION_PLAN")]
    plan: Option<Plan>,
    /// The scale of a trajectory's guidance.
    #[arg(long, env = "ACCORDION_GUIDANCE", default_value_t = 7.5, allow_negative_numbers = true)]
    guidance: f64,
    /// File with what the part reads; other tensors in it are passed over.
    ///
    /// The denoiser: `x` [B, C, H, W] and `sigma` [B] or, for a variance preserving model, `xt` and times `t` [B]; for a conditional
    /// model also `class_labels` [B, classes] (zeros without it) or `class_index` [B]. One that reads texts: `latents_xt`
    /// [B, C, H, W], times `t` [B] and `context` [B, 77, channels].
    #[arg(long, env = "ACCORDION_INPUT")]
    input: PathBuf,
    /// File to write to.
    ///
    /// The denoiser writes `denoised` [B, C, H, W], or `noise_pred` where times are given; one that reads texts `eps`.
    #[arg(long, env = "ACCORDION_OUTPUT")]
    output: PathBuf,
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The denoiser.
    Denoiser,
    /// The encoder of texts: `text_token_ids` [N, 77] to `text_hidden` [N, 77, channels].
    Text,
    /// The autoencoder's encoder: `vae_image` [B, 3, H, W] to `vae_mean` and `vae_logvar`.
    VaeEncode,
    /// Its decoder: `vae_latent` [B, C, H, W], divided by the scaling factor, to `vae_decoded`.
    VaeDecode,
    /// A trajectory by --plan with --guidance: `initial_latents` [B, C, H, W] of unit variance and `guidance_context`
    /// [2, 77, channels], of the negative prompt and of the prompt, to `latents`.
    Sample,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let model = Model::open(&self.model)?;
        let input = TensorFile::open(&self.input)?;
        if self.plan.is_some() && self.part != Part::Sample {
            return Err(Error::input("--plan", "is of a trajectory: give --part sample with it"));
        }
        let output = match self.part {
            Part::Denoiser => vec![self.denoise(&model, &input)?],
            part => parts::run(part, &self, &model, &input)?,
        };
        write_tensors(&self.output, output, None)
    }

    fn denoise(&self, model: &Model, input: &TensorFile) -> Result<(&'static str, Tensor)> {
        let subnet = model.subnet(&self.subnet)?;
        model.network.check_denoises()?;
        let Noisy { image, x, levels: Levels { levels, are_times }, conditions } = input.noisy(&model.network)?;
        let (batch, elements) = (levels.len(), image.elements());
        let mut runner = HostRunner::new(model, Threads::ALL)?;
        let mut output = Vec::with_capacity(x.len());
        for start in (0..batch).step_by(BATCH) {
            let end = (start + BATCH).min(batch);
            let (levels, conditions) = (&levels[start..end], &conditions[start..end]);
            let rows = Rows { image, x: &x[start * elements..end * elements], beside: &[], levels, conditions };
            output.extend(if are_times { runner.raw(subnet, &rows) } else { runner.call(subnet, &rows) });
        }
        let is_v =
            matches!(model.network.preconditioning(), Preconditioning::Ddpm { predicts: Predicts::VPrediction, .. });
        let name = match (are_times, model.network.program().context()) {
            (_, Some(_)) if is_v => "v",
            (_, Some(_)) => "eps",
            (true, None) => "noise_pred",
            (false, None) => "denoised",
        };
        Ok((name, channels_first(output, batch, image)?))
    }
}

/// Images, channels last, as `[B, C, H, W]`.
fn channels_first(images: Vec<f32>, batch: usize, image: ImageShape) -> Result<Tensor> {
    let ImageShape { height, width, channels } = image;
    let images = Tensor::from_vec(images, (batch, height, width, channels), &Device::Cpu)?;
    Ok(images.permute((0, 3, 1, 2))?.contiguous()?)
}

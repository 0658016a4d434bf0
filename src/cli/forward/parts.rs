//! The networks beside the denoiser of a model that draws texts, and its trajectories.

use super::{Args, Part, channels_first};
use crate::cli::tensors::TensorFile;
use crate::diffusion::{Trajectory, guide};
use crate::nets::subnet_table::find;
use crate::nets::text_to_image::TextToImage;
use crate::nets::{Condition, Decoder, HostRunner, Model, Rows, Threads};
use crate::philox::NoiseKey;
use crate::{Error, ImageShape, Result};
use candle_core::Tensor;
use std::sync::Arc;

type Named = Vec<(&'static str, Tensor)>;

/// Runs a part.
///
/// # Errors
/// If the model does not have it, or a tensor is missing or does not fit.
pub fn run(part: Part, args: &Args, model: &Model, input: &TensorFile) -> Result<Named> {
    let Some(parts) = &model.card.text_to_image else {
        return Err(Error::input("--part", "is of a model that draws texts, which this one does not"));
    };
    match part {
        Part::Text => text(parts, args, input),
        Part::VaeEncode => encode(parts, args, input),
        Part::VaeDecode => decode(parts, args, model, input),
        Part::Denoiser | Part::Sample => sample(args, model, input),
    }
}

fn text(parts: &TextToImage, args: &Args, input: &TensorFile) -> Result<Named> {
    let (encoder, _) = parts.texts(&args.model)?;
    let ids = input.token_ids("text_token_ids", encoder.length(), encoder.ids())?;
    Ok(vec![("text_hidden", encoder.hidden(&ids)?)])
}

fn encode(parts: &TextToImage, args: &Args, input: &TensorFile) -> Result<Named> {
    let (vae, name) = (&parts.vae, "vae_image");
    let image = input.size_of(name, vae.in_channels, vae.factor())?;
    let (batch, images) = input.images(name, image)?;
    let moments = parts.encoder(&args.model, Threads::ALL)?.run_sized(image, &images);
    let [height, width] = [image.height, image.width].map(|side| side / vae.factor());
    let latent = ImageShape { height, width, channels: vae.latent_channels };
    let half = |first: usize| {
        let of_pixel = |pixel: &[f32]| pixel[first..][..latent.channels].to_vec();
        channels_first(moments.chunks_exact(2 * latent.channels).flat_map(of_pixel).collect(), batch, latent)
    };
    Ok(vec![("vae_mean", half(0)?), ("vae_logvar", half(latent.channels)?)])
}

fn decode(parts: &TextToImage, args: &Args, model: &Model, input: &TensorFile) -> Result<Named> {
    let (vae, name) = (&parts.vae, "vae_latent");
    let latent = input.size_of(name, vae.latent_channels, 1)?;
    let (batch, latents) = input.images(name, latent)?;
    let decoder = Decoder::wanted(model)?;
    let subnet = find(decoder.subnets(), &args.subnet, "decoder")?;
    let pictures = decoder.runner(Threads::ALL)?.run_subnet(subnet, latent, &latents);
    let [height, width] = [latent.height, latent.width].map(|side| side * vae.factor());
    let picture = ImageShape { height, width, channels: vae.out_channels };
    Ok(vec![("vae_decoded", channels_first(pictures, batch, picture)?)])
}

fn sample(args: &Args, model: &Model, input: &TensorFile) -> Result<Named> {
    let (network, process) = (&model.network, model.card.process());
    let plan = args.plan.clone().ok_or_else(|| Error::input("--plan", "is missing, by which to sample"))?;
    plan.check_from_noise(&process).map_err(|problem| Error::input("--plan", format!("{plan}: {problem}")))?;
    model.check_plan(&plan)?;
    network.check_denoises()?;
    if !args.guidance.is_finite() {
        return Err(Error::input("--guidance", format!("{} is not a number", args.guidance)));
    }
    let name = "initial_latents";
    let image = input.size_of(name, network.image().channels, network.program().steps_of_size())?;
    let (batch, noise) = input.images(name, image)?;
    let contexts = input.contexts("guidance_context", network, 2)?;
    let [negative, prompt] = [0, 1].map(|index| vec![Condition::Text(contexts[index].clone()); batch]);
    let mut runner = HostRunner::new(model, Threads::ALL)?;
    let (plan, elements) = (Arc::new(plan), image.elements());
    // Nothing is drawn but what the file has; a plan's own noise is that of a seed of 0.
    let key = |image: usize| NoiseKey { seed: 0, image: image as u32 };
    let begin = |(index, noise)| Trajectory::from_noise(plan.clone(), process, key(index), noise);
    let mut trajectories: Vec<Trajectory> = noise.chunks_exact(elements).enumerate().map(begin).collect();
    while let Some(call) = trajectories[0].next_call() {
        let (subnet, levels) = (model.subnet(call.subnet)?, vec![call.level; batch]);
        let x: Vec<f32> = trajectories.iter().flat_map(Trajectory::input).map(|&value| value as f32).collect();
        let rows = Rows { image, x: &x, beside: &[], levels: &levels, conditions: &prompt };
        let (of_prompt, rows) = (runner.call(subnet, &rows), Rows { conditions: &negative, ..rows });
        let by = plan.guide_at(trajectories[0].step(), Some(args.guidance));
        let (guiding, scale) = by.expect("it is guided");
        let denoised = guide(&of_prompt, &runner.call(model.subnet(guiding)?, &rows), scale);
        for (trajectory, denoised) in trajectories.iter_mut().zip(denoised.chunks_exact(elements)) {
            trajectory.advance(denoised);
        }
    }
    let latents = trajectories.iter().flat_map(Trajectory::image).map(|&value| value as f32).collect();
    Ok(vec![("latents", channels_first(latents, batch, image)?)])
}

//! The denoising loss on images that training has not seen.

use crate::Result;
use crate::diffusion::Level;
use crate::nets::{Condition, Denoiser, HostRunner, Rows};
use crate::training::batch::Batches;
use crate::training::config::Loss;
use crate::training::data::Examples;

/// Samples in one call.
const BATCH: usize = 32;

/// The mean of `weight(sigma) |D - x0|^2` over elements (Karras et al. 2022, eq. 8) of each subnet of `runner`, narrow to
/// wide, over `samples` noisy images. Every subnet sees the same ones, each with its class or caption; they depend on `seed` alone.
///
/// # Errors
/// As [`Examples::check`], [`Loss::check`] and [`crate::nets::Network::check_denoises`].
pub fn denoising_losses(
    runner: &mut HostRunner,
    examples: &dyn Examples,
    loss: &Loss,
    seed: u64,
    samples: usize,
) -> Result<Vec<f64>> {
    let network = runner.network().clone();
    let (image, preconditioning) = (network.image(), network.preconditioning());
    network.check_denoises()?;
    examples.check(image, network.classes())?;
    loss.check(preconditioning)?;
    let loss = Loss { label_dropout: 0.0, ..loss.clone() };
    let mut batches = Batches::new(examples, &loss, &network, seed);
    let elements = image.elements();
    let mut sums = vec![0.0; runner.about().subnets.len()];
    for start in (0..samples).step_by(BATCH) {
        let batch = batches.draw(start as u64, BATCH.min(samples - start));
        let texts = examples.contexts(&batch.labels)?;
        let conditions: Vec<Condition> = match network.program().context_elements() {
            0 => batch.labels.iter().map(|&label| label.into()).collect(),
            of => texts.chunks_exact(of).map(|text| Condition::Text(text.into())).collect(),
        };
        let levels: Vec<Level> = batch.sigma.iter().map(|&sigma| sigma.into()).collect();
        let rows = Rows { image, x: &batch.x, beside: &[], levels: &levels, conditions: &conditions };
        for (subnet, sum) in sums.iter_mut().enumerate() {
            let denoised = runner.denoise(subnet, &rows)?;
            let images = denoised.chunks_exact(elements).zip(batch.x0.chunks_exact(elements));
            for ((got, want), &sigma) in images.zip(&batch.sigma) {
                let squares: f64 = got.iter().zip(want).map(|(g, w)| ((g - w) as f64).powi(2)).sum();
                *sum += preconditioning.loss_weight(sigma) * squares / elements as f64;
            }
        }
    }
    Ok(sums.into_iter().map(|sum| sum / samples as f64).collect())
}

//! The denoising loss on images that training has not seen.

use crate::Result;
use crate::nets::{Denoiser, HostRunner};
use crate::training::batch::Batches;
use crate::training::config::Loss;
use crate::training::data::Dataset;

/// Samples in one call.
const BATCH: usize = 32;

/// The mean of `weight(sigma) |D - x0|^2` over elements (Karras et al. 2022, eq. 8) of each subnet of `runner`, narrow to
/// wide, over `samples` noisy images. Every subnet sees the same ones, each with its class; they depend on `seed` alone.
///
/// # Errors
/// As [`Dataset::check`] and [`crate::nets::Network::check_denoises`].
pub fn denoising_losses(
    runner: &mut HostRunner,
    dataset: &Dataset,
    loss: &Loss,
    seed: u64,
    samples: usize,
) -> Result<Vec<f64>> {
    let (image, classes, preconditioning) =
        (runner.network().image(), runner.network().classes(), runner.network().preconditioning());
    runner.network().check_denoises()?;
    dataset.check(image, classes)?;
    let loss = Loss { label_dropout: 0.0, ..loss.clone() };
    let mut batches = Batches::new(dataset, &loss, classes, seed);
    let elements = image.elements();
    let mut sums = vec![0.0; runner.about().subnets.len()];
    for start in (0..samples).step_by(BATCH) {
        let batch = batches.draw(start as u64, BATCH.min(samples - start));
        for (subnet, sum) in sums.iter_mut().enumerate() {
            let denoised = runner.denoise_classes(subnet, &batch.x, &batch.sigma, &batch.classes)?;
            let images = denoised.chunks_exact(elements).zip(batch.x0.chunks_exact(elements));
            for ((got, want), &sigma) in images.zip(&batch.sigma) {
                let squares: f64 = got.iter().zip(want).map(|(g, w)| ((g - w) as f64).powi(2)).sum();
                *sum += preconditioning.loss_weight(sigma) * squares / elements as f64;
            }
        }
    }
    Ok(sums.into_iter().map(|sum| sum / samples as f64).collect())
}

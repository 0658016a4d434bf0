//! First calls are slow (pages, buffers, caches): they are made before the first request.

use super::Denoiser;
use crate::{Error, Result};

/// Larger batches take memory that is there already, for the most part, and much time.
const MOST: usize = 64;

/// Calls every subnet with one sample, a few, and the largest batch.
///
/// # Errors
/// [`Error::Input`] for a subnet whose output is not finite: its weights are damaged; the denoiser's own.
pub fn warm(denoiser: &mut dyn Denoiser, max_batch: usize) -> Result<()> {
    let largest = max_batch.clamp(1, MOST);
    let (elements, subnets) = (denoiser.about().state().elements(), denoiser.about().subnets.len());
    let mut batches = vec![1, largest.div_ceil(4), largest];
    // A large model's calls are not made twice.
    batches.dedup();
    for batch in batches {
        let (x, sigma, class) = (vec![0.5; batch * elements], vec![1.0; batch], vec![None; batch]);
        for subnet in 0..subnets {
            let denoised = denoiser.denoise_classes(subnet, &x, &sigma, &class)?;
            if !denoised.iter().all(|value| value.is_finite()) {
                let name = &denoiser.about().subnets[subnet].name;
                return Err(Error::input(format!("subnet {name}"), "its first call gave values that are not finite"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::gaussian::{Fault, Gaussian};

    #[test]
    fn every_subnet_runs_at_three_sizes() {
        let (mut denoiser, gate) = Gaussian::conditional();
        warm(&mut *denoiser, 16).unwrap();
        let seen: Vec<_> = gate.calls().iter().map(|call| (call.subnet, call.sigma.len())).collect();
        assert_eq!(seen, [(0, 1), (1, 1), (2, 1), (0, 4), (1, 4), (2, 4), (0, 16), (1, 16), (2, 16)]);
    }

    #[test]
    fn no_size_runs_twice() {
        let (mut denoiser, gate) = Gaussian::conditional();
        warm(&mut *denoiser, 2).unwrap();
        let seen: Vec<_> = gate.calls().iter().map(|call| (call.subnet, call.sigma.len())).collect();
        assert_eq!(seen, [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)]);
    }

    #[test]
    fn a_subnet_that_gives_no_numbers_is_refused_by_its_name() {
        let (mut denoiser, gate) = Gaussian::conditional();
        gate.fail_next(Fault::NotFinite);
        let message = warm(&mut *denoiser, 16).unwrap_err().to_string();
        assert_eq!(message, "subnet 0.250: its first call gave values that are not finite");
    }
}

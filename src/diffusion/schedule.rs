//! Noise levels: where on the way from noise to image a solver calls the denoiser.

use super::preconditioning::Preconditioning;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The noise levels that a network is sampled over: standard deviations, in the units of its input.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct SigmaRange {
    /// The last level before the clean image.
    pub min: f64,
    /// The level of the initial noise.
    pub max: f64,
}

/// What a file says before it is believed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    min: f64,
    max: f64,
}

impl TryFrom<Unchecked> for SigmaRange {
    type Error = Error;

    fn try_from(range: Unchecked) -> Result<Self> {
        Self::new(range.min, range.max)
    }
}

impl SigmaRange {
    /// A range that every spacing can divide.
    ///
    /// # Errors
    /// If `min` is not positive, `max` is not finite, or `max` is less than twice `min`.
    pub fn new(min: f64, max: f64) -> Result<Self> {
        if min > 0.0 && max.is_finite() && max >= 2.0 * min {
            Ok(Self { min, max })
        } else {
            Err(Error::input(
                "sigma range",
                format!("{min} to {max} is not a range of positive levels with max >= 2 min"),
            ))
        }
    }

    /// The range that NVlabs' `edm_sampler` uses for a network: 0.002 to 80, cut to what the network was trained on
    /// (Karras et al. 2022, table 1; VE's 0.02 cuts it, and the steps of a process in steps are all there is).
    pub fn of(preconditioning: &Preconditioning) -> Self {
        match preconditioning {
            Preconditioning::Vp | Preconditioning::Edm { .. } => Self { min: 0.002, max: 80.0 },
            Preconditioning::Ve => Self { min: 0.02, max: 80.0 },
            Preconditioning::Ddpm { .. } => {
                let levels = preconditioning.steps();
                let (min, max) =
                    levels.fold((f64::INFINITY, 0f64), |(min, max), level| (min.min(level), max.max(level)));
                Self { min, max }
            }
        }
    }
}

/// How the levels are spread over their range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Spacing {
    /// Uniform in `sigma^(1/7)` (Karras et al. 2022, equation 5 with rho = 7).
    #[default]
    Karras,
    /// Uniform in log-SNR, that is in log sigma (Lu et al. 2022, DPM-Solver, section 3.4).
    LogSnr,
}

impl Spacing {
    const RHO: f64 = 7.0;

    /// The level at `position` from 0 (max) to 1 (min).
    fn sigma(self, position: f64, range: SigmaRange) -> f64 {
        let SigmaRange { min, max } = range;
        // Rounding must not take the ends out of the range that the network knows.
        if position == 0.0 {
            return max;
        }
        if position == 1.0 {
            return min;
        }
        let between = |max: f64, min: f64| max + position * (min - max);
        match self {
            Self::Karras => {
                let root = |sigma: f64| sigma.powf(1.0 / Self::RHO);
                between(root(max), root(min)).powf(Self::RHO)
            }
            Self::LogSnr => between(max.ln(), min.ln()).exp(),
        }
    }
}

/// The levels of `steps` steps: `steps + 1` values from `range.max` down to `range.min`, then exactly 0.
///
/// One step goes from `range.max` to 0. `range` must satisfy [`SigmaRange::new`].
pub fn sigmas(spacing: Spacing, steps: usize, range: SigmaRange) -> Vec<f64> {
    let last = steps.saturating_sub(1).max(1) as f64;
    (0..steps).map(|step| spacing.sigma(step as f64 / last, range)).chain([0.0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `heun8_sigmas` of the golden song_unet_edm_uncond; song_unet_vp_cond has the same.
    const EDM_8: [f64; 9] = [
        80.0,
        34.9921890047465,
        13.698574682939958,
        4.63707496868762,
        1.2866142695789209,
        0.2674753613794615,
        0.03518665099082092,
        0.002000000000000003,
        0.0,
    ];

    /// `heun8_sigmas` of the golden song_unet_ve_ncsnpp.
    const VE_8: [f64; 9] = [
        80.0,
        38.5104965589943,
        17.021479938332963,
        6.753511410719345,
        2.327339875420689,
        0.6620827943263082,
        0.14288330274052202,
        0.020000000000000014,
        0.0,
    ];

    fn assert_near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-14 * expected, "{found} is not {expected}");
        }
    }

    #[test]
    fn karras_levels_are_those_of_the_edm_sampler() {
        let levels = |preconditioning| sigmas(Spacing::Karras, 8, SigmaRange::of(&preconditioning));
        assert_near(&levels(Preconditioning::Edm { sigma_data: 0.5 }), &EDM_8);
        assert_near(&levels(Preconditioning::Vp), &EDM_8);
        assert_near(&levels(Preconditioning::Ve), &VE_8);
    }

    #[test]
    fn log_snr_levels_have_one_ratio() {
        let range = SigmaRange::new(0.01, 100.0).unwrap();
        assert_near(&sigmas(Spacing::LogSnr, 5, range), &[100.0, 10.0, 1.0, 0.1, 0.01, 0.0]);
    }

    #[test]
    fn every_number_of_steps_starts_at_max_falls_and_ends_at_zero() {
        let range = SigmaRange::new(0.002, 80.0).unwrap();
        for spacing in [Spacing::Karras, Spacing::LogSnr] {
            assert_eq!(sigmas(spacing, 1, range), [80.0, 0.0]);
            for steps in [2, 3, 18, 999, 1000] {
                let levels = sigmas(spacing, steps, range);
                assert_eq!(levels.len(), steps + 1);
                assert_eq!([levels[0], levels[steps - 1]], [80.0, 0.002]);
                assert!(levels.windows(2).all(|pair| pair[0] > pair[1]));
                assert_eq!(levels[steps], 0.0);
            }
        }
    }

    #[test]
    fn a_range_that_cannot_be_divided_is_refused() {
        for (min, max) in [(0.0, 80.0), (-1.0, 80.0), (80.0, 0.002), (1.0, 1.5), (f64::NAN, 1.0), (1.0, f64::INFINITY)]
        {
            assert!(SigmaRange::new(min, max).is_err(), "{min} to {max}");
        }
        assert!(serde_json::from_str::<SigmaRange>(r#"{"min": 2, "max": 1}"#).is_err());
        assert_eq!(
            serde_json::from_str::<SigmaRange>(r#"{"min": 0.02, "max": 80}"#).unwrap(),
            SigmaRange { min: 0.02, max: 80.0 }
        );
    }
}

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

/// A noise level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// The standard deviation of the noise.
    pub sigma: f64,
    /// The time that the network is told, where it is not simply that of sigma: solvers of processes in steps round it.
    pub time: Option<f64>,
}

impl From<f64> for Level {
    /// The level whose time is that of sigma.
    fn from(sigma: f64) -> Self {
        Self { sigma, time: None }
    }
}

/// What a network was trained to undo.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Process {
    /// How it was told of noise; it says the steps of the process, where it has steps.
    pub preconditioning: Preconditioning,
    /// The levels that it is sampled over.
    pub range: SigmaRange,
}

impl Process {
    /// That of a network without steps, for levels of `range`.
    pub const fn edm(range: SigmaRange) -> Self {
        Self { preconditioning: Preconditioning::Edm { sigma_data: 0.5 }, range }
    }

    /// The number of its steps; 0 of a process without.
    pub fn steps(&self) -> usize {
        match self.preconditioning {
            Preconditioning::Ddpm { steps, .. } => steps,
            _ => 0,
        }
    }
}

/// How the levels are spread over their range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spacing {
    /// Uniform in `sigma^(1/7)` (Karras et al. 2022, equation 5 with rho = 7).
    Karras,
    /// Uniform in log-SNR, that is in log sigma (Lu et al. 2022, DPM-Solver, section 3.4).
    LogSnr,
    /// In time from its last step to its first (Lin et al. 2024, table 2, as the next two; the names are those of diffusers).
    Linspace,
    /// In time by whole numbers of steps, up from the second step.
    Leading,
    /// In time by equal shares, down from the last step.
    Trailing,
}

/// How a solver takes the times of a process in steps, as diffusers' class of it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Whether they are whole steps.
    pub are_whole: bool,
    /// Whether one more is counted, after the last step, where it does not call.
    pub one_more: bool,
}

impl Spacing {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Karras, Self::LogSnr, Self::Linspace, Self::Leading, Self::Trailing];
    const RHO: f64 = 7.0;
    /// The step that leading times begin at: `steps_offset` of Stable Diffusion's config.
    const FIRST_STEP: f64 = 1.0;

    /// The name in a plan's text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Karras => "karras",
            Self::LogSnr => "logsnr",
            Self::Linspace => "linspace",
            Self::Leading => "leading",
            Self::Trailing => "trailing",
        }
    }

    /// Whether it is one in time, which only a process in steps has.
    pub fn is_in_time(self) -> bool {
        matches!(self, Self::Linspace | Self::Leading | Self::Trailing)
    }

    /// The times of `steps` steps of a process of `of` steps, from `first` on, where some were taken before.
    ///
    /// # Panics
    /// If the spacing [`Self::is_in_time`] not.
    fn times(self, steps: usize, of: usize, first: Option<f64>, times: Times) -> Vec<f64> {
        let (count, last) = (steps as f64, of as f64 - 1.0);
        let apart = if times.one_more { count } else { (count - 1.0).max(1.0) };
        let time = |index: usize| {
            let index = index as f64;
            let down = |from: f64, to: f64| from + (to - from) * index / apart;
            match (self, first) {
                (Self::Linspace, first) => down(first.unwrap_or(last), 0.0),
                (Self::Leading, None) => {
                    let counted = if times.one_more { count + 1.0 } else { count };
                    let (ratio, left) = ((of as f64 / counted).floor(), counted - 1.0 - index);
                    (left * ratio + Self::FIRST_STEP).min(last)
                }
                (Self::Leading, Some(first)) => down(first, Self::FIRST_STEP),
                (Self::Trailing, first) => {
                    let from = first.unwrap_or(last) + 1.0;
                    (from - index * (from / count)).round_ties_even() - 1.0
                }
                (Self::Karras | Self::LogSnr, _) => unreachable!("they are not in time"),
            }
        };
        let whole = |time: f64| if times.are_whole { time.round_ties_even() } else { time };
        (0..steps).map(time).map(whole).collect()
    }

    /// The levels of the calls of `steps` steps, from `first` on, where some were taken before.
    ///
    /// `last` is the last level that is called, where it is not that of the process. A spacing in time is of a process in steps.
    pub fn levels(
        self,
        process: &Process,
        steps: usize,
        first: Option<Level>,
        last: Option<f64>,
        times: Times,
    ) -> Vec<Level> {
        let &Process { preconditioning, range } = process;
        if self.is_in_time() {
            let first_time = first.map(|first| first.time.unwrap_or_else(|| preconditioning.step_of(first.sigma)));
            let times = self.times(steps, process.steps(), first_time, times);
            let sigma = |time: f64| preconditioning.level_at(time).unwrap_or(range.max);
            let levels = times.into_iter().map(|time| Level { sigma: sigma(time), time: Some(time) });
            let mut levels: Vec<Level> = levels.collect();
            // To the bit what was there before.
            levels[0] = first.unwrap_or(levels[0]);
            return levels;
        }
        let max = first.map_or(range.max, |first| first.sigma);
        let range = SigmaRange { max, ..ending(range, last) };
        let mut levels: Vec<Level> = sigmas(self, steps, range).map(|sigma| timed(sigma, process, times)).collect();
        levels[0] = first.unwrap_or(levels[0]);
        levels
    }

    /// The level at `position` from 0 (the first) to 1 (the last), of a spacing in the noise level.
    ///
    /// # Panics
    /// If the spacing [`Self::is_in_time`].
    pub fn level(self, position: f64, process: &Process, last: Option<f64>, times: Times) -> Level {
        timed(self.sigma(position, ending(process.range, last)), process, times)
    }

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
            Self::Linspace | Self::Leading | Self::Trailing => unreachable!("they are in time"),
        }
    }
}

/// The range down to a last level of its own, if there is one. A range is at least a factor of 2 wide.
fn ending(range: SigmaRange, last: Option<f64>) -> SigmaRange {
    SigmaRange { min: last.map_or(range.min, |last| last.min(range.max / 2.0)), ..range }
}

/// A level with the time that a process in steps has then.
fn timed(sigma: f64, process: &Process, times: Times) -> Level {
    let time = (process.steps() > 0).then(|| process.preconditioning.step_of(sigma));
    Level { sigma, time: time.map(|time| if times.are_whole { time.round_ties_even() } else { time }) }
}

/// The levels of `steps` steps, from `range.max` down to `range.min`; one step has the first.
fn sigmas(spacing: Spacing, steps: usize, range: SigmaRange) -> impl Iterator<Item = f64> {
    let last = steps.saturating_sub(1).max(1) as f64;
    (0..steps).map(move |step| spacing.sigma(step as f64 / last, range))
}

/// [`sigmas`], and the 0 that the last step ends at.
#[cfg(test)]
pub(super) fn sigmas_to_zero(spacing: Spacing, steps: usize, range: SigmaRange) -> Vec<f64> {
    sigmas(spacing, steps, range).chain([0.0]).collect()
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
        let levels = |preconditioning| sigmas_to_zero(Spacing::Karras, 8, SigmaRange::of(&preconditioning));
        assert_near(&levels(Preconditioning::Edm { sigma_data: 0.5 }), &EDM_8);
        assert_near(&levels(Preconditioning::Vp), &EDM_8);
        assert_near(&levels(Preconditioning::Ve), &VE_8);
    }

    #[test]
    fn log_snr_levels_have_one_ratio() {
        let range = SigmaRange::new(0.01, 100.0).unwrap();
        assert_near(&sigmas_to_zero(Spacing::LogSnr, 5, range), &[100.0, 10.0, 1.0, 0.1, 0.01, 0.0]);
    }

    #[test]
    fn every_number_of_steps_starts_at_max_falls_and_ends_at_zero() {
        let range = SigmaRange::new(0.002, 80.0).unwrap();
        for spacing in [Spacing::Karras, Spacing::LogSnr] {
            assert_eq!(sigmas_to_zero(spacing, 1, range), [80.0, 0.0]);
            for steps in [2, 3, 18, 999, 1000] {
                let levels = sigmas_to_zero(spacing, steps, range);
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

//! The wrappers that turn a raw network F into a denoiser D(x; sigma) (Karras et al. 2022, table 1).

use super::schedule::Level;
use serde::{Deserialize, Serialize};

/// How a denoiser wraps its network: `D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Preconditioning {
    /// Variance preserving (Song et al. 2021), continuous form.
    Vp,
    /// Variance exploding (Song et al. 2021).
    Ve,
    /// Variance preserving in steps (Ho et al. 2020) whose betas' roots are equidistant, the "scaled linear" schedule of latent diffusion
    /// (Rombach et al. 2022): the network is told the step.
    Ddpm {
        /// The beta of the first step.
        beta_start: f64,
        /// The beta of the last one.
        beta_end: f64,
        /// How many steps there are.
        steps: usize,
        /// What the network predicts.
        #[serde(default)]
        predicts: Predicts,
    },
    /// EDM (Karras et al. 2022).
    Edm {
        /// Standard deviation of the data, in the units of the network's input.
        #[serde(default = "default_sigma_data")]
        sigma_data: f64,
    },
}

/// What a network of a process in steps predicts, with `xt = alpha x0 + sigma alpha eps`; under the names of diffusers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Predicts {
    /// The noise eps (Ho et al. 2020).
    #[default]
    Epsilon,
    /// `alpha eps - sigma alpha x0` (Salimans and Ho 2022, section 4).
    VPrediction,
}

fn default_sigma_data() -> f64 {
    0.5
}

/// The coefficients of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// Share of the noisy input in the output.
    pub c_skip: f64,
    /// Scale of the network's output.
    pub c_out: f64,
    /// Scale of the network's input.
    pub c_in: f64,
    /// What the network is told of sigma.
    pub c_noise: f64,
}

impl Coefficients {
    /// `c_in x`: what the network is given.
    pub fn input(&self, x: f32) -> f32 {
        self.c_in as f32 * x
    }

    /// `c_skip x + c_out F`: what its output F means.
    pub fn denoised(&self, x: f32, raw: f32) -> f32 {
        self.c_skip as f32 * x + self.c_out as f32 * raw
    }
}

impl Preconditioning {
    pub(crate) const VP_BETA_D: f64 = 19.9;
    pub(crate) const VP_BETA_MIN: f64 = 0.1;
    pub(crate) const VP_STEPS: f64 = 1000.0;
    /// That of Stable Diffusion 1.x.
    pub const STABLE_DIFFUSION: Self =
        Self::Ddpm { beta_start: 0.00085, beta_end: 0.012, steps: 1000, predicts: Predicts::Epsilon };

    /// The noise level of the variance preserving process at `time` in (0, 1] (Karras et al. 2022, table 1).
    pub fn vp_sigma(time: f64) -> f64 {
        (0.5 * Self::VP_BETA_D * time * time + Self::VP_BETA_MIN * time).exp_m1().sqrt()
    }

    /// The noise level of each step, ascending; none of a process without steps.
    ///
    /// `sigma^2 = (1 - a) / a` with `a` the product of `1 - beta` up to the step (Ho et al. 2020, eq. 4).
    pub fn steps(&self) -> impl Iterator<Item = f64> {
        let (first, last, steps) = match *self {
            Self::Ddpm { beta_start, beta_end, steps, .. } => (beta_start.sqrt(), beta_end.sqrt(), steps),
            _ => (0.0, 0.0, 0),
        };
        let beta = move |step: usize| (first + (last - first) * step as f64 / (steps - 1).max(1) as f64).powi(2);
        let mut kept = 1.0;
        (0..steps).map(move |step| {
            kept *= 1.0 - beta(step);
            ((1.0 - kept) / kept).sqrt()
        })
    }

    /// The noise level of a time, between two steps linear in it; None of a process without steps, or beyond its last.
    pub fn level_at(&self, time: f64) -> Option<f64> {
        let before = time.floor();
        let mut steps = self.steps().skip(before as usize);
        let level = steps.next().filter(|_| time >= 0.0)?;
        if time == before {
            return Some(level);
        }
        Some(level + (time - before) * (steps.next()? - level))
    }

    /// The step of this noise level: between two of them linear in its logarithm, beyond them the first or the last.
    pub(super) fn step_of(&self, sigma: f64) -> f64 {
        let mut before = None;
        for (step, level) in self.steps().enumerate() {
            match before {
                _ if level < sigma => before = Some((step, level)),
                None => return 0.0,
                Some((step, before)) => return step as f64 + (sigma / before).ln() / (level / before).ln(),
            }
        }
        before.map_or(0.0, |(step, _)| step as f64)
    }

    /// The coefficients at a level, whose time the network is told, where it has one.
    pub fn at(&self, level: Level) -> Coefficients {
        let coefficients = self.coefficients(level.sigma);
        Coefficients { c_noise: level.time.unwrap_or(coefficients.c_noise), ..coefficients }
    }

    /// The coefficients at noise level `sigma` (Karras et al. 2022, table 1).
    pub fn coefficients(&self, sigma: f64) -> Coefficients {
        let variance = sigma * sigma;
        match *self {
            Self::Vp => {
                let (d, min) = (Self::VP_BETA_D, Self::VP_BETA_MIN);
                let time = ((min * min + 2.0 * d * variance.ln_1p()).sqrt() - min) / d;
                Coefficients {
                    c_skip: 1.0,
                    c_out: -sigma,
                    c_in: 1.0 / (variance + 1.0).sqrt(),
                    c_noise: (Self::VP_STEPS - 1.0) * time,
                }
            }
            Self::Ddpm { predicts, .. } => {
                let c_in = 1.0 / (variance + 1.0).sqrt();
                let (c_skip, c_out) = match predicts {
                    Predicts::Epsilon => (1.0, -sigma),
                    Predicts::VPrediction => (c_in * c_in, -sigma * c_in),
                };
                Coefficients { c_skip, c_out, c_in, c_noise: self.step_of(sigma) }
            }
            Self::Ve => Coefficients { c_skip: 1.0, c_out: sigma, c_in: 1.0, c_noise: (0.5 * sigma).ln() },
            Self::Edm { sigma_data } => {
                let data = sigma_data * sigma_data;
                Coefficients {
                    c_skip: data / (variance + data),
                    c_out: sigma * sigma_data / (variance + data).sqrt(),
                    c_in: 1.0 / (data + variance).sqrt(),
                    c_noise: sigma.ln() / 4.0,
                }
            }
        }
    }

    /// The weight of a sample's squared error at noise level `sigma` (Karras et al. 2022, table 1: lambda).
    pub fn loss_weight(&self, sigma: f64) -> f64 {
        match *self {
            // That of the squared error of what is predicted.
            Self::Ddpm { predicts: Predicts::VPrediction, .. } => 1.0 + 1.0 / (sigma * sigma),
            Self::Vp | Self::Ve | Self::Ddpm { .. } => 1.0 / (sigma * sigma),
            Self::Edm { sigma_data } => (sigma * sigma + sigma_data * sigma_data) / (sigma * sigma_data).powi(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_network_in_steps_predicts_gives_the_image_back_and_weighs_its_own_error() {
        let (x0, eps) = (0.7, -1.3);
        for predicts in [Predicts::Epsilon, Predicts::VPrediction] {
            let process = Preconditioning::Ddpm { beta_start: 0.00085, beta_end: 0.012, steps: 1000, predicts };
            for sigma in [0.03f64, 0.5, 1.0, 14.0] {
                let alpha = 1.0 / (1.0 + sigma * sigma).sqrt();
                let predicted = match predicts {
                    Predicts::Epsilon => eps,
                    Predicts::VPrediction => alpha * eps - sigma * alpha * x0,
                };
                let c = process.coefficients(sigma);
                assert!(
                    (c.c_skip * (x0 + sigma * eps) + c.c_out * predicted - x0).abs() < 1e-12,
                    "{predicts:?} {sigma}"
                );
                assert!((process.loss_weight(sigma) * c.c_out * c.c_out - 1.0).abs() < 1e-12, "{predicts:?} {sigma}");
            }
        }
    }
}

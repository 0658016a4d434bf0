//! The wrappers that turn a raw network F into a denoiser D(x; sigma) (Karras et al. 2022, table 1).

use serde::{Deserialize, Serialize};

/// How a denoiser wraps its network: `D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Preconditioning {
    /// Variance preserving (Song et al. 2021), continuous form.
    Vp,
    /// Variance exploding (Song et al. 2021).
    Ve,
    /// EDM (Karras et al. 2022).
    Edm {
        /// Standard deviation of the data, in the units of the network's input.
        #[serde(default = "default_sigma_data")]
        sigma_data: f64,
    },
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

    /// The noise level of the variance preserving process at `time` in (0, 1] (Karras et al. 2022, table 1).
    pub fn vp_sigma(time: f64) -> f64 {
        (0.5 * Self::VP_BETA_D * time * time + Self::VP_BETA_MIN * time).exp_m1().sqrt()
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
            Self::Vp | Self::Ve => 1.0 / (sigma * sigma),
            Self::Edm { sigma_data } => (sigma * sigma + sigma_data * sigma_data) / (sigma * sigma_data).powi(2),
        }
    }
}

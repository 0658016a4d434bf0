//! What the quality of a plan is.

use super::realism::Realism;
use super::to_reference::ToReference;
use crate::diffusion::Plan;
use crate::nets::Denoiser;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What quality is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The Fréchet distance of the images to real ones, in the model's features.
    Fd,
    /// The mean squared distance of an image to that of a reference plan of the same seed and class.
    MseToReference,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Fd, Self::MseToReference];

    /// Its name in a profile and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fd => "fd",
            Self::MseToReference => "mse-to-reference",
        }
    }

    /// What quality is, for people.
    pub fn definition(self) -> &'static str {
        match self {
            Self::Fd => {
                "1 - (sqrt(d) - sqrt(one)) / (sqrt(zero) - sqrt(one)), where d is the Frechet distance of the plan's images to \
                 real ones in the model's features, one that of other real images, zero that of images that are the mean of their \
                 class"
            }
            Self::MseToReference => {
                "1 - d / zero, where d is the mean squared distance to the image of heun-18@full of the same seed and class, zero \
                 that of two of its images of one class"
            }
        }
    }

    /// Plans of less quality are left out of a frontier: nobody asks for a blur, whose quality is 0 by one metric and 0.5 or a
    /// little more by the other.
    pub fn floor(self) -> f64 {
        match self {
            Self::Fd => 0.3,
            Self::MseToReference => 0.6,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|metric| metric.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is none of fd, mse-to-reference"))
    }
}

/// How good a plan is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rating {
    /// The distance that the metric is about.
    pub distance: f64,
    /// The quality that it comes to: 1 is the best that can be hoped for, 0 is worth nothing.
    pub quality: f64,
    /// The standard error of the quality.
    pub error: f64,
}

/// What measures plans.
#[derive(Debug)]
pub enum Yardstick {
    /// By [`Metric::Fd`].
    Fd(Box<Realism>),
    /// By [`Metric::MseToReference`].
    MseToReference(ToReference),
}

impl Yardstick {
    /// What it measures.
    pub fn metric(&self) -> Metric {
        match self {
            Self::Fd(_) => Metric::Fd,
            Self::MseToReference(_) => Metric::MseToReference,
        }
    }

    /// The distances of quality 1 and of quality 0.
    pub fn marks(&self) -> [f64; 2] {
        match self {
            Self::Fd(realism) => realism.marks(),
            Self::MseToReference(reference) => [0.0, reference.unrelated()],
        }
    }

    /// How good so many images of `plan` are. The same for the same plan, always; the images of fewer are the first of more.
    ///
    /// # Errors
    /// If the device fails or the model lacks a subnet.
    pub fn rate(&mut self, denoiser: &mut dyn Denoiser, plan: &Plan, images: usize) -> Result<Rating> {
        let rating = match self {
            Self::Fd(realism) => realism.rate(denoiser, plan, images)?,
            Self::MseToReference(reference) => reference.rate(denoiser, plan, images)?,
        };
        if rating.quality.is_nan() {
            return Err(Error::input("model", format!("the images of {plan} are not finite")));
        }
        Ok(rating)
    }
}

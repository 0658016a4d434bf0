//! The backbones that there are: the one place that tells them apart.

use super::ImageShape;
use super::program::Program;
use super::song_unet;
use crate::Result;
use serde::{Deserialize, Serialize};

/// The backbones that a model directory can name, with their options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "arch", rename_all = "kebab-case")]
pub enum Backbone {
    /// DDPM++ and NCSN++.
    SongUnet(song_unet::Config),
}

impl Backbone {
    /// The network.
    ///
    /// # Errors
    /// [`crate::Error::Input`] with the option that does not fit.
    pub fn program(&self) -> Result<Program> {
        match self {
            Self::SongUnet(config) => config.program(),
        }
    }

    /// The same with narrower pipes, by name and width: an extracted subnet.
    pub fn narrowed(mut self, pipes: impl IntoIterator<Item = (String, usize)>) -> Self {
        match &mut self {
            Self::SongUnet(config) => config.pipe_widths.extend(pipes),
        }
        self
    }

    /// The size of its images.
    pub fn image(&self) -> ImageShape {
        match self {
            Self::SongUnet(config) => config.image(),
        }
    }

    /// What is most likely a slip: a field, what of it has no effect, and what would have.
    pub fn warning(&self) -> Option<String> {
        match self {
            Self::SongUnet(config) => config.warning(),
        }
    }

    /// Whether training does all that the options ask for.
    ///
    /// # Errors
    /// A field, and what of it is not supported.
    pub fn check_trainable(&self) -> std::result::Result<(), (&'static str, &'static str)> {
        match self {
            Self::SongUnet(config) => config.check_trainable(),
        }
    }

    /// The number of its classes; 0 if it is unconditional.
    pub fn classes(&self) -> usize {
        match self {
            Self::SongUnet(config) => config.label_dim,
        }
    }
}

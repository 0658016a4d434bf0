//! The backbones that there are: the one place that tells them apart.

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

    /// The number of its classes; 0 if it is unconditional.
    pub fn classes(&self) -> usize {
        match self {
            Self::SongUnet(config) => config.label_dim,
        }
    }
}

//! The backbones that there are: the one place that tells them apart.

use super::ImageShape;
use super::program::Program;
use super::song_unet;
use crate::Result;
use crate::checkpoint::StateDict;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The architectures of the backbones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    /// DDPM++ and NCSN++ of NVlabs/edm.
    SongUnet,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::SongUnet];

    /// The architecture of our name, or of the name of a class in public code; what follows a `-` there says more of it.
    pub fn named(name: &str) -> Option<Self> {
        let is_named = |arch: &Self| name == arch.as_str() || name.split('-').next() == Some(arch.class());
        Self::ALL.into_iter().find(is_named)
    }

    /// Our name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SongUnet => "song-unet",
        }
    }

    /// The name of its class in public code.
    pub fn class(self) -> &'static str {
        match self {
            Self::SongUnet => "SongUNet",
        }
    }

    /// The backbone of the `config` in a public JSON file.
    ///
    /// # Errors
    /// What does not fit.
    pub fn of_json(self, config: Value) -> std::result::Result<Backbone, serde_json::Error> {
        match self {
            Self::SongUnet => serde_json::from_value(config).map(Backbone::SongUnet),
        }
    }

    /// The backbone that public code makes of these named arguments.
    ///
    /// # Errors
    /// What does not fit.
    pub fn of_arguments(self, arguments: &Map<String, Value>) -> std::result::Result<Backbone, String> {
        match self {
            Self::SongUnet => song_unet::Config::of_arguments(arguments).map(Backbone::SongUnet),
        }
    }

    /// The backbone whose tensors these most likely are, by their names and shapes.
    pub fn recognise(self, tensors: &StateDict) -> Option<Backbone> {
        match self {
            Self::SongUnet => song_unet::Config::recognise(tensors).map(Backbone::SongUnet),
        }
    }
}

/// The backbones that a model directory can name, with their options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "arch", rename_all = "kebab-case")]
pub enum Backbone {
    /// DDPM++ and NCSN++.
    SongUnet(song_unet::Config),
}

impl Backbone {
    /// The backbone whose tensors these most likely are, by their names and shapes; `arch`, where that is known.
    pub fn recognise(tensors: &StateDict, arch: Option<Arch>) -> Option<Self> {
        let possible = arch.map_or(Arch::ALL.to_vec(), |arch| vec![arch]);
        possible.into_iter().find_map(|arch| arch.recognise(tensors))
    }

    /// Its architecture.
    pub fn arch(&self) -> Arch {
        match self {
            Self::SongUnet(_) => Arch::SongUnet,
        }
    }

    /// Refuses tensors beside the parameters, constants of public code, that are not those of the options.
    ///
    /// # Errors
    /// [`crate::Error::Input`] with the file and the tensor.
    pub fn check_buffers(&self, tensors: &StateDict) -> Result<()> {
        match self {
            Self::SongUnet(config) => config.check_filters(tensors),
        }
    }

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

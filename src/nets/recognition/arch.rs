//! The architectures that are told apart, and what each says of itself: a new one is a line in each of these functions.

use super::{edm, u_vit};
use crate::checkpoint::StateDict;
use crate::diffusion::preconditioning::Preconditioning;
use crate::nets::Backbone;
use serde_json::{Map, Value};

/// The architectures of the backbones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    /// DDPM++ and NCSN++ of NVlabs/edm.
    SongUnet,
    /// ADM of NVlabs/edm.
    Adm,
    /// U-ViT of baofff/U-ViT.
    UVit,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::SongUnet, Self::Adm, Self::UVit];

    /// That of a backbone.
    pub fn of(backbone: &Backbone) -> Self {
        match backbone {
            Backbone::SongUnet(_) => Self::SongUnet,
            Backbone::Adm(_) => Self::Adm,
            Backbone::UVit(_) => Self::UVit,
        }
    }

    /// The architecture of our name, or of the name of a class in public code; what follows a `-` there says more of it.
    pub fn named(name: &str) -> Option<Self> {
        let is_named = |arch: &Self| name == arch.as_str() || name.split('-').next() == Some(arch.class());
        Self::ALL.into_iter().find(is_named)
    }

    /// Our name, as in `model.toml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SongUnet => "song-unet",
            Self::Adm => "adm",
            Self::UVit => "u-vit",
        }
    }

    /// The name of its class in public code.
    pub fn class(self) -> &'static str {
        match self {
            Self::SongUnet => "SongUNet",
            Self::Adm => "DhariwalUNet",
            Self::UVit => "UViT",
        }
    }

    /// The preconditioning of all its public networks; None where they differ.
    pub fn preconditioning(self) -> Option<Preconditioning> {
        match self {
            Self::SongUnet | Self::Adm => None,
            // They predict the noise of the VP process at time 999 t.
            Self::UVit => Some(Preconditioning::Vp),
        }
    }

    /// The backbone of these options.
    ///
    /// # Errors
    /// What is missing or does not fit.
    pub fn options(self, mut options: Map<String, Value>) -> Result<Backbone, String> {
        options.insert("arch".into(), self.as_str().into());
        serde_json::from_value(Value::Object(options)).map_err(|error| error.to_string())
    }

    /// The backbone that public code makes of these named arguments.
    ///
    /// # Errors
    /// What is missing or does not fit.
    pub fn of_arguments(self, arguments: &Map<String, Value>) -> Result<Backbone, String> {
        self.options(match self {
            Self::SongUnet => edm::options(edm::song_unet_defaults(), arguments)?,
            Self::Adm => edm::options(edm::adm_defaults(), arguments)?,
            Self::UVit => arguments.clone(),
        })
    }

    /// The backbone whose tensors these most likely are, by names and shapes; None where they are of another architecture.
    /// Whether all of them are the network's is not checked.
    ///
    /// # Errors
    /// What cannot be told.
    pub fn recognise(self, tensors: &StateDict) -> Option<Result<Backbone, String>> {
        match self {
            Self::SongUnet => edm::song_unet(tensors).map(|config| Ok(Backbone::SongUnet(config))),
            Self::Adm => edm::adm(tensors).map(|config| Ok(Backbone::Adm(config))),
            Self::UVit => u_vit::recognise(tensors).map(|config| config.map(Backbone::UVit)),
        }
    }
}

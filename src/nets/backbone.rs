//! The backbones that there are: the one place that tells them apart.

use super::builder::Builder;
use super::program::Program;
use super::recognition::{edm, pipeline, u_vit as by_u_vit};
use super::{adm, song_unet, u_vit, unet};
use crate::ImageShape;
use crate::checkpoint::StateDict;
use crate::diffusion::preconditioning::Preconditioning;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The options of a kind of backbone: what its own file says of it.
pub trait Architecture {
    /// The size of its images.
    fn image(&self) -> ImageShape;

    /// The number of its classes; 0 if it is unconditional.
    fn classes(&self) -> usize;

    /// Widths of the pipes that are narrower than their block, by name: what an extracted subnet keeps.
    fn pipe_widths(&self) -> &BTreeMap<String, usize>;

    /// The same, to change them.
    fn pipe_widths_mut(&mut self) -> &mut BTreeMap<String, usize>;

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`Error::Input`] with the field and what it accepts.
    fn check(&self) -> Result<()>;

    /// Writes the network, which [`Self::check`] has passed.
    ///
    /// # Errors
    /// [`Error::Input`] with the field that does not fit the others.
    fn build(&self, b: &mut Builder) -> Result<()>;

    /// What is most likely a slip: a field, what of it has no effect, and what would have.
    fn warning(&self) -> Option<String> {
        None
    }

    /// The filter that the `resample_filter` buffers of its checkpoints hold; empty where they have none.
    fn resample_filter(&self) -> &[f32] {
        &[]
    }

    /// Whether training does all that the options ask for.
    ///
    /// # Errors
    /// A field, and what of it is not supported.
    fn check_trainable(&self) -> std::result::Result<(), (&'static str, &'static str)> {
        Ok(())
    }
}

/// The backbones that a model directory can name, with their options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "arch", rename_all = "kebab-case")]
pub enum Backbone {
    /// DDPM++ and NCSN++.
    SongUnet(song_unet::Config),
    /// ADM.
    Adm(adm::Config),
    /// U-ViT.
    UVit(u_vit::Config),
    /// Stable Diffusion's.
    Unet(unet::Config),
}

/// Named arguments of public code, or the options that follow from them.
type Arguments = Map<String, Value>;

/// A kind of backbone: what it is called, and how checkpoints say that they are one.
#[derive(Debug)]
struct Kind {
    /// Our name, as in `model.toml`.
    name: &'static str,
    /// The name of its class in public code.
    class: &'static str,
    /// What its public code puts before every name in a checkpoint.
    prefix: &'static str,
    /// The preconditioning of all its public networks; None where they differ.
    preconditioning: Option<Preconditioning>,
    /// The options that public code makes of these named arguments.
    of_arguments: fn(&Arguments) -> std::result::Result<Arguments, String>,
    /// See [`Arch::recognise`].
    recognise: fn(&StateDict) -> Option<std::result::Result<Backbone, String>>,
}

static KINDS: [Kind; 4] = [
    Kind {
        name: "song-unet",
        class: "SongUNet",
        // EDM's wrapper holds the network as its `model`.
        prefix: "model.",
        preconditioning: None,
        of_arguments: |arguments| edm::options(edm::song_unet_defaults(), arguments),
        recognise: |tensors| edm::song_unet(tensors).map(|config| Ok(Backbone::SongUnet(config))),
    },
    Kind {
        name: "adm",
        class: "DhariwalUNet",
        prefix: "model.",
        preconditioning: None,
        of_arguments: |arguments| edm::options(edm::adm_defaults(), arguments),
        recognise: |tensors| edm::adm(tensors).map(|config| Ok(Backbone::Adm(config))),
    },
    Kind {
        name: "u-vit",
        class: "UViT",
        prefix: "",
        // They predict the noise of the VP process at time 999 t.
        preconditioning: Some(Preconditioning::Vp),
        of_arguments: |arguments| Ok(arguments.clone()),
        recognise: |tensors| by_u_vit::recognise(tensors).map(|config| config.map(Backbone::UVit)),
    },
    Kind {
        name: "unet",
        class: "UNet2DConditionModel",
        prefix: "",
        preconditioning: Some(Preconditioning::STABLE_DIFFUSION),
        of_arguments: |arguments| Ok(arguments.clone()),
        // Alone it draws nothing: see `pipeline`.
        recognise: |tensors| tensors.shape("time_embedding.linear_1.weight").map(|_| Err(pipeline::ALONE.to_owned())),
    },
];

/// The architecture of a backbone.
#[derive(Clone, Copy, Debug)]
pub struct Arch(&'static Kind);

impl Arch {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.iter().map(Self)
    }

    /// The architecture of our name, or of the name of a class in public code; what follows a `-` there says more of it.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|arch| name == arch.as_str() || name.split('-').next() == Some(arch.class()))
    }

    /// Our name, as in `model.toml`.
    pub fn as_str(self) -> &'static str {
        self.0.name
    }

    /// The name of its class in public code.
    pub fn class(self) -> &'static str {
        self.0.class
    }

    /// What its public code puts before every name in a checkpoint.
    pub fn prefix(self) -> &'static str {
        self.0.prefix
    }

    /// The preconditioning of all its public networks; None where they differ.
    pub fn preconditioning(self) -> Option<Preconditioning> {
        self.0.preconditioning
    }

    /// The backbone of these options.
    ///
    /// # Errors
    /// What is missing or does not fit.
    pub fn options(self, mut options: Map<String, Value>) -> std::result::Result<Backbone, String> {
        options.insert("arch".into(), self.as_str().into());
        serde_json::from_value(Value::Object(options)).map_err(|error| error.to_string())
    }

    /// The backbone that public code makes of these named arguments.
    ///
    /// # Errors
    /// What is missing or does not fit.
    pub fn of_arguments(self, arguments: &Map<String, Value>) -> std::result::Result<Backbone, String> {
        self.options((self.0.of_arguments)(arguments)?)
    }

    /// The backbone whose tensors these most likely are, by names and shapes; None where they are of another architecture.
    /// Whether all of them are the network's is not checked.
    ///
    /// # Errors
    /// What cannot be told.
    pub fn recognise(self, tensors: &StateDict) -> Option<std::result::Result<Backbone, String>> {
        (self.0.recognise)(tensors)
    }
}

impl PartialEq for Arch {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl FromStr for Arch {
    type Err = String;

    /// # Errors
    /// One sentence that lists the accepted names.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let names = || Self::all().map(Self::as_str).collect::<Vec<_>>().join(", ");
        Self::named(text).ok_or_else(|| format!("architecture `{text}` is unknown: accepted are {}", names()))
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Backbone {
    /// Its architecture.
    pub fn arch(&self) -> Arch {
        // The tag that it is written with.
        let written = serde_json::to_value(self).expect("options are plain data");
        written["arch"].as_str().and_then(Arch::named).expect("every backbone has a kind")
    }

    fn options(&self) -> &dyn Architecture {
        match self {
            Self::SongUnet(config) => config,
            Self::Adm(config) => config,
            Self::UVit(config) => config,
            Self::Unet(config) => config,
        }
    }

    fn options_mut(&mut self) -> &mut dyn Architecture {
        match self {
            Self::SongUnet(config) => config,
            Self::Adm(config) => config,
            Self::UVit(config) => config,
            Self::Unet(config) => config,
        }
    }

    /// The network.
    ///
    /// # Errors
    /// [`Error::Input`] with the option that does not fit.
    pub fn program(&self) -> Result<Program> {
        let options = self.options();
        options.check()?;
        if !options.pipe_widths().is_empty() {
            let mut whole = self.clone();
            whole.options_mut().pipe_widths_mut().clear();
            check_pipe_widths(options.pipe_widths(), &whole.program()?)?;
        }
        let mut builder = Builder::new(self.image(), self.classes(), options.pipe_widths().clone());
        options.build(&mut builder)?;
        Ok(builder.build())
    }

    /// The same with narrower pipes, by name and width: an extracted subnet.
    pub fn narrowed(mut self, pipes: impl IntoIterator<Item = (String, usize)>) -> Self {
        self.options_mut().pipe_widths_mut().extend(pipes);
        self
    }

    /// The size of its images.
    pub fn image(&self) -> ImageShape {
        self.options().image()
    }

    /// The number of its classes; 0 if it is unconditional.
    pub fn classes(&self) -> usize {
        self.options().classes()
    }

    /// The filter that the `resample_filter` buffers of its checkpoints hold; empty where they have none.
    pub fn resample_filter(&self) -> &[f32] {
        self.options().resample_filter()
    }

    /// What is most likely a slip: a field, what of it has no effect, and what would have.
    pub fn warning(&self) -> Option<String> {
        self.options().warning()
    }

    /// Whether training does all that the options ask for.
    ///
    /// # Errors
    /// A field, and what of it is not supported.
    pub fn check_trainable(&self) -> std::result::Result<(), (&'static str, &'static str)> {
        self.options().check_trainable()
    }
}

/// Whether a network that is `whole` otherwise can have pipes of these widths.
fn check_pipe_widths(widths: &BTreeMap<String, usize>, whole: &Program) -> Result<()> {
    for (name, &width) in widths {
        let place = format!("pipe_widths.{name}");
        match whole.spec.pipes.iter().find(|pipe| pipe.name == *name) {
            None => return Err(Error::input(place, "the network has no such pipe")),
            Some(pipe) if width > pipe.width => {
                return Err(Error::input(place, format!("{width} is not a width from 0 to {}", pipe.width)));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

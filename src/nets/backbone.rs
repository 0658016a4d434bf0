//! The backbones that there are: the one place that tells them apart.

use super::builder::Builder;
use super::program::Program;
use super::{ImageShape, adm, song_unet, u_vit};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
}

impl Backbone {
    fn options(&self) -> &dyn Architecture {
        match self {
            Self::SongUnet(config) => config,
            Self::Adm(config) => config,
            Self::UVit(config) => config,
        }
    }

    fn options_mut(&mut self) -> &mut dyn Architecture {
        match self {
            Self::SongUnet(config) => config,
            Self::Adm(config) => config,
            Self::UVit(config) => config,
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

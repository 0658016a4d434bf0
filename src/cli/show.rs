//! `accordion show`: what an image was drawn with.

use crate::console::print;
use crate::engine::settings::Settings;
use crate::{Error, Result};
use std::path::PathBuf;

/// Print what a PNG file was drawn with, and how to draw it again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A PNG file of `accordion generate` or of a server.
    file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let file = std::fs::read(&self.file).map_err(Error::io(&self.file))?;
        let settings = Settings::read(&file, &self.file.display().to_string())?;
        match self.json {
            true => print(settings.text()),
            false => print(settings),
        }
    }
}

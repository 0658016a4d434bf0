//! `accordion extract`: a subnet as a model of its own.

use crate::Result;
use crate::files::{check_vacant, write_directory};
use crate::nets::{Model, diffusers, public, public_config};
use candle_core::DType;
use std::path::PathBuf;

/// Write a subnet as a model of its own.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory.
    #[arg(long, env = "ACCORDION_MODEL")]
    model: PathBuf,
    /// The subnet: `full` or a ratio, such as 0.5.
    #[arg(long, env = "ACCORDION_SUBNET")]
    subnet: String,
    /// The directory to make.
    #[arg(long, env = "ACCORDION_OUT")]
    out: PathBuf,
    /// What the directory holds.
    #[arg(long, env = "ACCORDION_FORMAT", default_value = "accordion")]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    /// A model directory.
    Accordion,
    /// weights.safetensors under the public names, channels in their original order, and config.json.
    TorchNames,
    /// A pipeline in the directory layout of diffusers, of a model that draws texts at full width.
    Diffusers,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        check_vacant(&self.out)?;
        let model = Model::open(&self.model)?;
        let subnet = model.subnet(&self.subnet)?;
        let mut extracted = model.extract(subnet)?;
        let name = &model.table.subnets[subnet].name;
        extracted.card.made.insert("subnet_of".into(), format!("{} {name}", model.card.name).into());
        write_directory(&self.out, |dir| match self.format {
            Format::Accordion => extracted.write(dir, DType::F32),
            Format::Diffusers => diffusers::write(&extracted, dir),
            Format::TorchNames => {
                public::write(&extracted, &dir.join("weights.safetensors"))?;
                public_config::write(&extracted, &dir.join("config.json"))
            }
        })
    }
}

//! `accordion import`: a public checkpoint becomes a model directory.

use crate::classes;
use crate::files::{check_vacant, write_directory};
use crate::nets::model::Card;
use crate::nets::network::Network;
use crate::nets::{Model, public, public_config};
use crate::supernet::Supernet;
use crate::{Error, Result};
use candle_core::DType;
use std::path::PathBuf;

/// Turn a public checkpoint into a model directory.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The architecture.
    #[arg(long, env = "ACCORDION_ARCH")]
    arch: Arch,
    /// JSON file with `config` and `preconditioning` (edm, vp or ve).
    #[arg(long, env = "ACCORDION_CONFIG")]
    config: PathBuf,
    /// Weights under the public names.
    #[arg(long, env = "ACCORDION_WEIGHTS")]
    weights: PathBuf,
    /// What stands before every name in the weights; without it `model.` or nothing. For a file with two networks.
    #[arg(long, env = "ACCORDION_PREFIX")]
    prefix: Option<String>,
    /// The model directory to make.
    #[arg(long, env = "ACCORDION_OUT")]
    out: PathBuf,
    /// The model's name; the directory's without it.
    #[arg(long, env = "ACCORDION_NAME")]
    name: Option<String>,
    /// Class names in the order of the labels, separated by commas.
    #[arg(long, env = "ACCORDION_CLASSES", value_delimiter = ',')]
    classes: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Arch {
    /// DDPM++ and NCSN++ of NVlabs/edm.
    SongUnet,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        check_vacant(&self.out)?;
        let Arch::SongUnet = self.arch;
        let (backbone, preconditioning) = public_config::read(&self.config)?;
        let network =
            Network::new(&backbone, preconditioning).map_err(|error| error.in_table(&self.config, "config."))?;
        let refuse = |problem: String| Error::input("--classes", problem);
        let classes = classes::checked(&self.classes).map_err(refuse)?;
        if !classes.is_empty() && classes.len() != network.classes() {
            return Err(refuse(format!("{} names for a network of {} classes", classes.len(), network.classes())));
        }
        let params = public::read(network.spec(), &self.weights, self.prefix.as_deref())?;
        let directory = || self.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = self.name.clone().unwrap_or_else(directory);
        let card = Card::new(name, backbone, preconditioning, classes);
        let model = Model::unallocated(card, Supernet::original(network.spec(), params))?;
        write_directory(&self.out, |dir| model.write(dir, DType::F32))
    }
}

//! `accordion allocate`: choose the subnets of a ranked model.

use crate::console::print;
use crate::nets::Model;
use crate::supernet::allocation::Wanted;
use crate::supernet::{Order, ranking};
use crate::{Error, Result};
use std::path::PathBuf;

/// Choose the subnets of a ranked model, in place.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory, as `accordion rank` makes it.
    #[arg(long, env = "ACCORDION_MODEL")]
    model: PathBuf,
    #[command(flatten)]
    wanted: Wanted,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let model = Model::open(&self.model)?;
        let path = self.model.join(ranking::FILE);
        if model.supernet.order == Order::Original || !path.exists() {
            let problem = "is missing: run `accordion rank` first and allocate what it makes";
            return Err(Error::input(path.display(), problem));
        }
        let spec = model.network.spec();
        let importance = ranking::from_original(&model.supernet, &ranking::read(spec, &path)?);
        let rows = self.wanted.subnets(spec, &importance, model.supernet.order)?;
        let model = model.with_subnets(self.wanted.target.as_str(), rows)?;
        model.write_subnets(&self.model)?;
        for subnet in model.subnets() {
            print(format_args!("{}: {} parameters, {} MACs", subnet.name, subnet.parameters, subnet.macs))?;
        }
        Ok(())
    }
}

//! `accordion allocate`: choose the subnets of a ranked model.

use super::part::Part;
use crate::console::print;
use crate::nets::text_to_image::DECODER_IMPORTANCE;
use crate::nets::{Decoder, Model};
use crate::supernet::allocation::Wanted;
use crate::supernet::{Order, Spec, Subnet, Supernet, ranking};
use crate::{Error, Result};
use std::path::PathBuf;

/// Choose the subnets of a ranked model, in place.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory, as `accordion rank` makes it.
    #[arg(long, env = "ACCORDION_MODEL")]
    model: PathBuf,
    /// Whose subnets are chosen.
    #[arg(long, env = "ACCORDION_PART", default_value = "denoiser")]
    part: Part,
    #[command(flatten)]
    wanted: Wanted,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let (model, target) = (Model::open(&self.model)?, self.wanted.target.as_str());
        match self.part {
            Part::Denoiser => {
                let rows = self.rows(model.network.spec(), &model.supernet, ranking::FILE, "rank")?;
                let model = model.with_subnets(target, rows)?;
                model.write_subnets(&self.model)?;
                report(model.subnets())
            }
            Part::Decoder => {
                let decoder = Decoder::wanted(&model)?;
                let spec = &decoder.program.spec;
                let rows = self.rows(spec, &decoder.supernet, DECODER_IMPORTANCE, "rank --part decoder")?;
                let decoder = decoder.with_subnets(target, rows)?;
                decoder.write_subnets(&self.model)?;
                report(decoder.subnets())
            }
        }
    }

    /// The subnets of a network whose importances are in this file, which the `command` makes.
    fn rows(&self, spec: &Spec, supernet: &Supernet, file: &str, command: &str) -> Result<Vec<Subnet>> {
        let path = self.model.join(file);
        if supernet.order == Order::Original || !path.exists() {
            let problem = format!("is missing: run `accordion {command}` first and allocate what it makes");
            return Err(Error::input(path.display(), problem));
        }
        let importance = ranking::from_original(supernet, &ranking::read(spec, &path)?);
        self.wanted.subnets(spec, &importance, supernet.order)
    }
}

fn report(subnets: &[Subnet]) -> Result<()> {
    subnets.iter().try_for_each(|Subnet { name, parameters, macs, .. }| {
        print(format_args!("{name}: {parameters} parameters, {macs} MACs"))
    })
}

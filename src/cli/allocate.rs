//! `accordion allocate`: choose the subnets of a ranked model.

use crate::nets::{Denoiser, Model};
use crate::supernet::allocation::{self, Constraint, Cost};
use crate::supernet::{Order, Subnet, Widths, ranking};
use crate::training::config::Target;
use crate::{Error, Result};
use std::path::PathBuf;

/// Choose the subnets of a ranked model, in place.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory, as `accordion rank` makes it.
    #[arg(long, env = "ACCORDION_MODEL")]
    model: PathBuf,
    /// The ratios, separated by commas; without them, those from 0.25 to 1 that can be reached.
    #[arg(long, env = "ACCORDION_RATIOS", value_delimiter = ',', conflicts_with = "step")]
    ratios: Vec<f64>,
    /// Distance between the ratios from 0.25 to 1.
    #[arg(long, env = "ACCORDION_STEP", default_value_t = 0.125)]
    step: f64,
    /// What a ratio is of.
    #[arg(long, env = "ACCORDION_TARGET", default_value = "macs")]
    target: Target,
    /// Kept widths are multiples of this.
    #[arg(long, env = "ACCORDION_ALIGN", default_value_t = 1)]
    align: usize,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let model = Model::open(&self.model)?;
        let path = self.model.join(ranking::FILE);
        if model.supernet.order == Order::Original || !path.exists() {
            return Err(Error::input(
                path.display(),
                "is missing: run `accordion rank` first and allocate what it makes",
            ));
        }
        let spec = model.network.spec();
        let importance = ranking::from_original(&model.supernet, &ranking::read(spec, &path)?);
        let constraint = Constraint { align: self.align, within_group: model.supernet.order == Order::WithinGroup };
        let ratios = self.ratios(&model, constraint)?;
        let widths: Vec<Widths> = match cost(self.target) {
            None => {
                ratios.iter().map(|&r| allocation::channels(spec, &importance, r, constraint)).collect::<Result<_>>()?
            }
            Some(cost) => allocation::greedy(spec, &importance, cost, &ratios, constraint)?,
        };
        let rows = ratios.iter().zip(&widths).map(|(&ratio, widths)| Subnet::new(spec, ratio, widths)).collect();
        let model = model.with_subnets(self.target.as_str(), rows)?;
        model.write_subnets(&self.model)?;
        for subnet in model.subnets() {
            println!("{}: {} parameters, {} MACs", subnet.name, subnet.parameters, subnet.macs);
        }
        Ok(())
    }

    /// The ratios that were asked for, or the part of the usual ones that can be reached.
    fn ratios(&self, model: &Model, constraint: Constraint) -> Result<Vec<f64>> {
        if !self.ratios.is_empty() {
            // As precise as a subnet's name.
            let mut ratios: Vec<f64> = self.ratios.iter().map(|ratio| (ratio * 1000.0).round() / 1000.0).collect();
            ratios.sort_by(f64::total_cmp);
            if let Some(pair) = ratios.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(Error::input("--ratios", format!("{:.3} stands twice", pair[0])));
            }
            return Ok(ratios);
        }
        let mut ratios = allocation::ratios(self.step)?;
        if self.align == 0 {
            return Err(Error::input("--align", "0 is not a number of channels; give 1 or more"));
        }
        if let Some(cost) = cost(self.target) {
            let smallest = allocation::smallest_ratio(model.network.spec(), cost, constraint);
            let below = ratios.iter().filter(|&&ratio| ratio < smallest).count();
            if below > 0 {
                let left_out: Vec<String> = ratios.drain(..below).map(|ratio| format!("{ratio:.3}")).collect();
                eprintln!(
                    "left out {}: the smallest reachable ratio of the {cost} is {smallest:.3}",
                    left_out.join(", ")
                );
            }
        }
        Ok(ratios)
    }
}

/// The cost that a target is a ratio of; channels are none.
fn cost(target: Target) -> Option<Cost> {
    match target {
        Target::Channels => None,
        Target::Macs => Some(Cost::Macs),
        Target::Params => Some(Cost::Params),
    }
}

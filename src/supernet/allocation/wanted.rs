//! What a user asks of an allocation, and the table of subnets that it gives.

use super::{Constraint, Cost, QUARTER, channels, greedy, ratios, smallest_ratio};
use crate::supernet::{Order, Spec, Subnet, Widths};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// What a ratio is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Channels, by the paper's Formula 5.
    Channels,
    /// Multiply-accumulates of the whole network.
    Macs,
    /// Parameters of the whole network.
    Params,
}

impl Target {
    /// The name used in files and flags.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Channels => "channels",
            Self::Macs => "macs",
            Self::Params => "params",
        }
    }

    fn cost(self) -> Option<Cost> {
        match self {
            Self::Channels => None,
            Self::Macs => Some(Cost::Macs),
            Self::Params => Some(Cost::Params),
        }
    }
}

/// Which subnets are cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// What a ratio is of.
    #[arg(long, env = "ACCORDION_TARGET", default_value = "macs")]
    pub target: Target,
    /// The ratios, separated by commas; without them, those from 0.25 to 1 that can be reached.
    #[arg(long, env = "ACCORDION_RATIOS", value_delimiter = ',', conflicts_with = "step")]
    pub ratios: Vec<f64>,
    /// Distance between the ratios from 0.25 to 1.
    #[arg(long, env = "ACCORDION_STEP", default_value_t = 0.125)]
    pub step: f64,
    /// The share of a pipe that every subnet keeps; at 0 blocks may be left out.
    #[arg(long, env = "ACCORDION_FLOOR", default_value_t = QUARTER)]
    pub floor: f64,
    /// Kept widths are multiples of this.
    #[arg(long, env = "ACCORDION_ALIGN", default_value_t = 1)]
    pub align: usize,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { target: Target::Macs, ratios: Vec::new(), step: 0.125, floor: QUARTER, align: 1 }
    }
}

impl Wanted {
    /// The subnets, from importance in the order of the channels, which is `order`.
    ///
    /// # Errors
    /// [`Error::Input`] if a ratio was asked for that cannot be met; of the usual ratios, those below the smallest that can
    /// be reached are left out, and the log says so.
    pub fn subnets(&self, spec: &Spec, importance: &[Vec<f64>], order: Order) -> Result<Vec<Subnet>> {
        let within_group = order == Order::WithinGroup;
        let constraint = Constraint { floor: self.floor, align: self.align, within_group };
        constraint.check()?;
        let ratios = self.ladder(spec, constraint)?;
        let widths: Vec<Widths> = match self.target.cost() {
            None => ratios.iter().map(|&r| channels(spec, importance, r, constraint)).collect::<Result<_>>()?,
            Some(cost) => greedy(spec, importance, cost, &ratios, constraint)?,
        };
        Ok(ratios.iter().zip(&widths).map(|(&ratio, widths)| Subnet::new(spec, ratio, widths)).collect())
    }

    /// The ratios, ascending.
    fn ladder(&self, spec: &Spec, constraint: Constraint) -> Result<Vec<f64>> {
        if !self.ratios.is_empty() {
            // As precise as a subnet's name.
            let mut ratios: Vec<f64> = self.ratios.iter().map(|ratio| (ratio * 1000.0).round() / 1000.0).collect();
            ratios.sort_by(f64::total_cmp);
            if let Some(pair) = ratios.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(Error::input("--ratios", format!("{:.3} stands twice", pair[0])));
            }
            return Ok(ratios);
        }
        let mut ratios = ratios(self.step)?;
        if let Some(cost) = self.target.cost() {
            let smallest = smallest_ratio(spec, cost, constraint);
            let below = ratios.iter().filter(|&&ratio| ratio < smallest).count();
            if below > 0 {
                let left_out: Vec<String> = ratios.drain(..below).map(|ratio| format!("{ratio:.3}")).collect();
                tracing::warn!(
                    "left out {}: the smallest reachable ratio of the {cost} is {smallest:.3}",
                    left_out.join(", ")
                );
            }
        }
        Ok(ratios)
    }
}

//! How many channels each pipe keeps: pure functions from a network, its importances and a ratio to nested widths.
//!
//! [`channels`] is the paper's rule, whose ratio counts channels; [`greedy`] meets a ratio of the multiply-accumulates or
//! of the parameters. An importance table has a row a pipe and a number a channel, in the order in which the pipe keeps
//! them: a prefix of the row is what a width keeps.

mod channels;
mod cost;
mod greedy;
#[cfg(test)]
mod tests;
mod wanted;

pub use channels::channels;
pub use cost::Cost;
pub use greedy::{TOLERANCE, greedy, smallest_ratio};
pub use wanted::{Target, Wanted};

use crate::supernet::{Pipe, Spec};
use crate::{Error, Result};

/// The share of a pipe that every subnet of the paper keeps.
pub const QUARTER: f64 = 0.25;

/// Which widths a pipe may take. Its full width is always one of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constraint {
    /// The share of a pipe that every subnet keeps, rounded to channels; at 0 a pipe may keep none, and its block is then left out.
    pub floor: f64,
    /// Kept widths are multiples of this many channels, for kernels that like them so; 1 allows every width.
    pub align: usize,
    /// Whether the channels are ordered within the groups of their GroupNorm: such a pipe keeps the same number of every
    /// group, so its width is a multiple of the number of groups, whatever `align` says.
    pub within_group: bool,
}

impl Default for Constraint {
    fn default() -> Self {
        Self { floor: QUARTER, align: 1, within_group: false }
    }
}

impl Constraint {
    /// The channels by which `pipe` grows.
    pub fn quantum(&self, pipe: &Pipe) -> usize {
        pipe.norm_groups.filter(|_| self.within_group).unwrap_or(self.align)
    }

    fn check(&self) -> Result<()> {
        // Written so that NaN is refused too.
        if !(0.0..=1.0).contains(&self.floor) {
            let problem = format!("{} is not a share of a pipe; give a number from 0 to 1", self.floor);
            return Err(Error::input("--floor", problem));
        }
        match self.align {
            0 => Err(Error::input("--align", "0 is not a number of channels; give 1 or more")),
            _ => Ok(()),
        }
    }
}

/// The ratios from 0.25 to 1 in steps of `step` (0.125 for a short ladder, 0.025 for the paper's 31), ascending.
///
/// Every ratio is the float nearest to its three decimals. The last is 1 even where the steps pass over it.
///
/// # Errors
/// [`Error::Input`] for a step that is not a positive number of thousandths.
pub fn ratios(step: f64) -> Result<Vec<f64>> {
    // Counted in thousandths: adding the step up would drift to 0.30000000000000004.
    let thousandths = (step * 1000.0).round();
    if !(1.0..=750.0).contains(&thousandths) || (thousandths - step * 1000.0).abs() > 1e-6 {
        let problem = format!("{step} is not a step between ratios; give a number of thousandths from 0.001 to 0.75");
        return Err(Error::input("--step", problem));
    }
    let below = (250..1000).step_by(thousandths as usize);
    Ok(below.chain([1000]).map(|n| f64::from(n) / 1000.0).collect())
}

fn check_ratio(ratio: f64) -> Result<()> {
    // Written so that NaN is refused too.
    if ratio > 0.0 && ratio <= 1.0 {
        return Ok(());
    }
    Err(Error::input("--ratios", format!("{ratio} is not a ratio; give a number above 0 and at most 1")))
}

fn check_importance(spec: &Spec, importance: &[Vec<f64>]) -> Result<()> {
    if importance.len() != spec.pipes.len() {
        let problem = format!("ranks {} pipes where the network has {}", importance.len(), spec.pipes.len());
        return Err(Error::input("importance", problem));
    }
    for (pipe, row) in spec.pipes.iter().zip(importance) {
        let place = format!("importance of {}", pipe.name);
        if row.len() != pipe.width {
            let problem = format!("ranks {} channels where the pipe has {}", row.len(), pipe.width);
            return Err(Error::input(place, problem));
        }
        if let Some((channel, value)) = row.iter().enumerate().find(|(_, v)| !(v.is_finite() && **v >= 0.0)) {
            let problem = format!("channel {channel} has {value}, which is not a finite number of at least 0");
            return Err(Error::input(place, problem));
        }
    }
    Ok(())
}

//! A subnet is a table of kept widths, one per pipe.

use crate::supernet::Spec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Kept channels of each pipe, in the order of [`crate::supernet::Spec::pipes`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Widths(pub Vec<usize>);

impl Widths {
    /// Whether every pipe of `self` is a prefix of the same pipe of `other`.
    pub fn nests_in(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| a <= b)
    }
}

/// One row of `subnets.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// The ratio with three decimals (`0.500`), or `full`.
    pub name: String,
    /// The ratio P that it was allocated for.
    pub ratio: f64,
    /// Its parameters.
    pub parameters: u64,
    /// Multiply-accumulates of one call on one image.
    pub macs: u64,
    /// Kept channels by pipe name.
    pub widths: BTreeMap<String, usize>,
}

impl Subnet {
    /// The row of the subnet of `widths`, which were allocated for `ratio`.
    pub fn new(spec: &Spec, ratio: f64, widths: &Widths) -> Self {
        let names = spec.pipes.iter().map(|pipe| pipe.name.clone());
        Self {
            name: subnet_name(ratio),
            ratio,
            parameters: spec.parameters(widths),
            macs: spec.macs(widths),
            widths: names.zip(widths.0.iter().copied()).collect(),
        }
    }
}

/// The name of the subnet of a ratio: three decimals, or `full` for the whole network.
pub fn subnet_name(ratio: f64) -> String {
    if ratio == 1.0 { "full".to_owned() } else { format!("{ratio:.3}") }
}

/// The widths of a row of `subnets.toml`, in the order of `spec.pipes`.
///
/// # Errors
/// What is wrong with the row's `widths`, by the pipe's name, for [`crate::Error::field`]: a pipe that the network has
/// not or the row lacks, or a width that is 0 or above the pipe's.
pub fn widths_of(spec: &Spec, subnet: &Subnet) -> Result<Widths, String> {
    let unknown = subnet.widths.keys().find(|name| spec.pipes.iter().all(|pipe| pipe.name != **name));
    if let Some(name) = unknown {
        return Err(format!("the network has no pipe {name}"));
    }
    let kept = |pipe: &crate::supernet::Pipe| match subnet.widths.get(&pipe.name) {
        None => Err(format!("pipe {} has no width", pipe.name)),
        Some(&kept) if (1..=pipe.width).contains(&kept) => Ok(kept),
        Some(kept) => Err(format!("pipe {} keeps {kept} channels; accepted are 1 to {}", pipe.name, pipe.width)),
    };
    Ok(Widths(spec.pipes.iter().map(kept).collect::<Result<_, _>>()?))
}

//! A subnet is a table of kept widths, one per pipe.

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

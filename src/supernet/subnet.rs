//! A subnet is a table of kept widths, one per pipe.

use crate::subnet_name::SubnetName;
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
    /// Its ratio with three decimals (`0.500`), or `full`.
    pub name: SubnetName,
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
            name: SubnetName::of(ratio),
            ratio,
            parameters: spec.parameters(widths),
            macs: spec.macs(widths),
            widths: names.zip(widths.0.iter().copied()).collect(),
        }
    }
}

/// Memory that the weights of these subnets would take if each were a network of its own, where `shared` bytes hold them all: by
/// their parameters, of which the widest has all.
pub fn bytes_as_copies(subnets: &[Subnet], shared: usize) -> usize {
    let all: u64 = subnets.iter().map(|subnet| subnet.parameters).sum();
    let widest = subnets.iter().map(|subnet| subnet.parameters).max().unwrap_or(1).max(1);
    (shared as u128 * u128::from(all) / u128::from(widest)) as usize
}

/// The widths of a row of `subnets.toml`, in the order of `spec.pipes`.
///
/// # Errors
/// What is wrong with the row's `widths`, by the pipe's name, for [`crate::Error::field`]: a pipe that the network has
/// not or the row lacks, or a width above the pipe's. A width of 0 leaves a block out: it hands its input on.
pub fn widths_of(spec: &Spec, subnet: &Subnet) -> Result<Widths, String> {
    let unknown = subnet.widths.keys().find(|name| spec.pipes.iter().all(|pipe| pipe.name != **name));
    if let Some(name) = unknown {
        return Err(format!("the network has no pipe {name}"));
    }
    let kept = |pipe: &crate::supernet::Pipe| match subnet.widths.get(&pipe.name) {
        None => Err(format!("pipe {} has no width", pipe.name)),
        Some(&kept) if kept <= pipe.width => Ok(kept),
        Some(kept) => Err(format!("pipe {} keeps {kept} channels; accepted are 0 to {}", pipe.name, pipe.width)),
    };
    Ok(Widths(spec.pipes.iter().map(kept).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supernet::{Pipe, PipeKind};

    fn spec() -> Spec {
        let pipe = |block: &str, kind: PipeKind, width| Pipe {
            name: format!("{block}.{}", kind.as_str()),
            block: block.to_owned(),
            kind,
            width,
            block_width: width,
            allocation_group: "all".to_owned(),
            norm_groups: None,
            macs_per_channel: 10,
        };
        Spec { pipes: vec![pipe("b", PipeKind::Conv, 8), pipe("a", PipeKind::Attn, 4)], params: Vec::new() }
    }

    #[test]
    fn a_row_gives_back_the_widths_that_it_was_made_of() {
        let widths = Widths(vec![5, 2]);
        let row = Subnet::new(&spec(), 0.5, &widths);
        assert_eq!((&*row.name, row.macs, row.widths["b.conv"]), ("0.500", 70, 5));
        assert_eq!(widths_of(&spec(), &row), Ok(widths));
        assert_eq!(Subnet::new(&spec(), 1.0, &spec().full()).name, "full");
    }

    #[test]
    fn a_row_that_does_not_fit_the_network_is_refused_by_the_pipe() {
        let refused = |change: fn(&mut BTreeMap<String, usize>)| {
            let mut row = Subnet::new(&spec(), 1.0, &spec().full());
            change(&mut row.widths);
            widths_of(&spec(), &row).unwrap_err()
        };
        assert_eq!(refused(|w| w.extend([("c.ffn".to_owned(), 1)])), "the network has no pipe c.ffn");
        assert_eq!(refused(|w| w.retain(|name, _| name != "a.attn")), "pipe a.attn has no width");
        assert_eq!(
            refused(|w| w.extend([("b.conv".to_owned(), 9)])),
            "pipe b.conv keeps 9 channels; accepted are 0 to 8"
        );
    }
}

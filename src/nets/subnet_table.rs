//! The subnets of a network as a model directory keeps them.

use crate::files::{read_toml, write_toml};
use crate::subnet_name::SubnetName;
use crate::supernet::{Spec, Subnet, Widths, widths_of};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of the directory's TOML files.
pub const FORMAT: u32 = 1;

/// `subnets.toml`, of the denoiser; and that of the decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetTable {
    /// Version of the format.
    pub format: u32,
    /// What the ratios are of: `channels`, `macs` or `params`; `none` before allocation.
    pub target: String,
    /// The SHA-256 of the weights that they are subnets of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The subnets, from the narrowest to the widest; the last is `full`.
    #[serde(default, rename = "subnet")]
    pub subnets: Vec<Subnet>,
}

impl SubnetTable {
    /// That of a network without allocation, whose only subnet is `full`.
    pub fn unallocated(spec: &Spec) -> Self {
        Self::new(spec, "none", Vec::new())
    }

    /// `rows` sorted by cost, `full` added last; their ratios are of `target`.
    pub fn new(spec: &Spec, target: &str, mut rows: Vec<Subnet>) -> Self {
        rows.retain(|row| !row.name.is_full());
        rows.sort_by_key(|row| row.macs);
        rows.push(Subnet::new(spec, 1.0, &spec.full()));
        Self { format: FORMAT, target: target.into(), weights: None, subnets: rows }
    }

    /// Reads a file of subnets of a network of this `spec`, the hash of whose weights is `weights` where it is known; they lie in the
    /// file called `of`.
    ///
    /// # Errors
    /// One sentence with the file and the field that is missing, of another version or inconsistent.
    pub fn read(spec: &Spec, path: &Path, weights: Option<&String>, of: &str) -> Result<Self> {
        let table: Self = read_toml(path)?;
        check_format(path, table.format)?;
        table.check(spec).map_err(|(place, problem)| Error::field(path, &place, problem))?;
        match (weights, &table.weights) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                let problem = format!("its subnets are of other weights than the {of} of this directory");
                Err(Error::field(path, "weights", problem))
            }
            _ => Ok(table),
        }
    }

    /// Writes the file, with the hash of the weights that the subnets are of.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(&self, path: &Path, weights: Option<&String>) -> Result<()> {
        write_toml(path, &Self { weights: weights.cloned(), ..self.clone() })
    }

    /// Checks what the types cannot say. The error is a place and what is wrong with it.
    ///
    /// # Errors
    /// What is said of a network of this `spec` that does not hold.
    pub fn check(&self, spec: &Spec) -> std::result::Result<(), (String, String)> {
        if self.subnets.last().is_none_or(|last| !last.name.is_full()) {
            return Err(("subnet".to_owned(), "the last subnet must be `full`".to_owned()));
        }
        for (index, subnet) in self.subnets.iter().enumerate() {
            let refuse = |problem: String| (format!("subnet {}", subnet.name), problem);
            let widths = widths_of(spec, subnet).map_err(refuse)?;
            let counts = (spec.parameters(&widths), spec.macs(&widths));
            if counts != (subnet.parameters, subnet.macs) {
                let (parameters, macs) = counts;
                return Err(refuse(format!(
                    "widths give {parameters} parameters and {macs} MACs, which the row denies"
                )));
            }
            if self.subnets[..index].iter().any(|earlier| earlier.name == subnet.name) {
                return Err(refuse("stands twice".to_owned()));
            }
        }
        Ok(())
    }

    /// The widths of every subnet, in order, of a table that was checked against this `spec`.
    pub fn widths(&self, spec: &Spec) -> Vec<Widths> {
        let widths = |subnet| widths_of(spec, subnet).expect("checked when the table was taken");
        self.subnets.iter().map(widths).collect()
    }
}

/// The index of the subnet of this name; `0.5` is accepted for `0.500`.
///
/// # Errors
/// One sentence that calls what was looked for `what`, and lists the names.
pub fn find(subnets: &[Subnet], name: &str, what: &str) -> Result<usize> {
    let ratio = name.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    let known = ratio.map_or_else(|| name.parse().ok(), |ratio| Some(SubnetName::of(ratio)));
    subnets.iter().position(|subnet| known.as_ref() == Some(&subnet.name)).ok_or_else(|| {
        let names: Vec<&str> = subnets.iter().map(|subnet| &*subnet.name).collect();
        Error::input(what, format!("`{name}` is none of {}", names.join(", ")))
    })
}

/// Refuses a file of another version.
pub fn check_format(path: &Path, format: u32) -> Result<()> {
    match format {
        FORMAT => Ok(()),
        _ => Err(Error::field(path, "format", format!("version {format} is not {FORMAT}"))),
    }
}

//! `profile.toml`: what a model's subnets cost on this machine. Written by `accordion profile`.

use crate::files::{read_toml, write_toml};
use crate::ops::cpu::peak;
use crate::supernet::Subnet;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of the file.
const FORMAT: u32 = 1;
/// Its name in a model directory.
pub const PROFILE: &str = "profile.toml";

/// The latency of a model on one machine. What its subnets are worth belongs here too, once it is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Version of the format.
    pub format: u32,
    /// Memory that the weights of all subnets take together.
    pub weight_bytes: u64,
    /// What was measured on.
    pub device: Device,
    /// Every subnet at every batch.
    pub latency: Vec<Latency>,
}

/// A machine, as far as times depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The processor's name.
    pub cpu: String,
    /// Threads that computed.
    pub threads: usize,
    /// The instruction set of the kernels.
    pub instruction_set: String,
}

/// The time of one call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Name of the subnet.
    pub subnet: String,
    /// Samples of the call.
    pub batch: usize,
    /// Its median time, in milliseconds.
    pub ms: f64,
}

impl Device {
    /// This machine, with so many threads.
    pub fn here(threads: usize) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = model_name(&info).unwrap_or(std::env::consts::ARCH).to_owned();
        Self { cpu, threads, instruction_set: peak::instruction_set().to_owned() }
    }
}

/// The processor's name in the text of `/proc/cpuinfo`, which not every architecture has.
fn model_name(info: &str) -> Option<&str> {
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim()).filter(|name| !name.is_empty())
}

impl Profile {
    /// A profile of the current format.
    pub fn new(device: Device, weight_bytes: usize, latency: Vec<Latency>) -> Self {
        Self { format: FORMAT, weight_bytes: weight_bytes as u64, device, latency }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// One sentence with the file and the field that is missing, damaged, of another version or without sense.
    pub fn open(path: &Path) -> Result<Self> {
        let profile: Self = read_toml(path)?;
        profile.check().map_err(|(field, problem)| Error::field(path, &field, problem))?;
        Ok(profile)
    }

    /// Writes the file whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_toml(path, self)
    }

    /// Whether it is about a model of these subnets. `path` is where it lies.
    ///
    /// # Errors
    /// One sentence with the file, the field and the subnet that only one of the two has.
    pub fn check_against(&self, subnets: &[Subnet], path: &Path) -> Result<()> {
        let refuse = |field: &str, problem| Err(Error::field(path, field, problem));
        let names: Vec<&str> = subnets.iter().map(|subnet| subnet.name.as_str()).collect();
        for (index, row) in self.latency.iter().enumerate() {
            if !names.contains(&row.subnet.as_str()) {
                let problem = format!("the model has no `{}`; it has {}", row.subnet, names.join(", "));
                return refuse(&format!("latency[{index}].subnet"), problem);
            }
        }
        match names.iter().find(|name| self.latency.iter().all(|row| row.subnet != **name)) {
            Some(name) => refuse("latency", format!("the model's subnet {name} is missing; run `accordion profile`")),
            None => Ok(()),
        }
    }

    /// Checks what the types cannot say. The error is a field and what is wrong with it.
    fn check(&self) -> std::result::Result<(), (String, String)> {
        let refuse = |field: &str, problem: String| Err((field.to_owned(), problem));
        if self.format != FORMAT {
            return refuse("format", format!("version {} is not {FORMAT}", self.format));
        }
        if self.device.threads == 0 {
            return refuse("device.threads", "0 is not accepted: it must be at least 1".to_owned());
        }
        if self.latency.is_empty() {
            return refuse("latency", "has no rows".to_owned());
        }
        for (index, row) in self.latency.iter().enumerate() {
            let field = |name: &str| format!("latency[{index}]{name}");
            if row.batch == 0 {
                return refuse(&field(".batch"), "0 is not accepted: it must be at least 1".to_owned());
            }
            if !(row.ms.is_finite() && row.ms > 0.0) {
                return refuse(&field(".ms"), format!("{} is not a time: it must be positive", row.ms));
            }
            let same = |earlier: &Latency| (&earlier.subnet, earlier.batch) == (&row.subnet, row.batch);
            if self.latency[..index].iter().any(same) {
                return refuse(&field(""), format!("subnet {} at batch {} stands twice", row.subnet, row.batch));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"format = 1
weight_bytes = 5000000

[device]
cpu = "AMD EPYC"
threads = 2
instruction_set = "avx512"

[[latency]]
subnet = "0.500"
batch = 1
ms = 0.25

[[latency]]
subnet = "full"
batch = 1
ms = 0.5
"#;

    fn profile() -> Profile {
        let device = Device { cpu: "AMD EPYC".to_owned(), threads: 2, instruction_set: "avx512".to_owned() };
        let row = |subnet: &str, ms| Latency { subnet: subnet.to_owned(), batch: 1, ms };
        Profile::new(device, 5_000_000, vec![row("0.500", 0.25), row("full", 0.5)])
    }

    #[test]
    fn a_profile_is_read_as_it_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        profile().write(file.path()).unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), TEXT);
        assert_eq!(Profile::open(file.path()).unwrap(), profile());
    }

    #[test]
    fn a_damaged_or_foreign_file_is_refused_with_the_field() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (from, to, says) in [
            ("format = 1", "format = 2", ": format: version 2 is not 1"),
            ("format = 1\n", "", ": missing field `format`"),
            ("weight_bytes = 5000000", "weight_bytes = -1", ": weight_bytes: invalid value"),
            ("cpu = ", "gpu = ", ": device.gpu: unknown field `gpu`"),
            ("threads = 2", "threads = 0", ": device.threads: 0 is not accepted"),
            ("batch = 1", "batch = 0", ": latency[0].batch: 0 is not accepted"),
            ("ms = 0.5", "ms = 'fast'", ": latency[1].ms: invalid type"),
            ("ms = 0.5", "ms = nan", ": latency[1].ms: NaN is not a time"),
            ("ms = 0.25", "ms = -0.25", ": latency[0].ms: -0.25 is not a time"),
            ("ms = 0.5\n", "", ": latency[1]: missing field `ms`"),
            ("\"full\"", "\"0.500\"", ": latency[1]: subnet 0.500 at batch 1 stands twice"),
            ("ms = 0.5\n", "ms = 0.5\nbits = 8", ": latency[1].bits: unknown field"),
            ("[device]", "[device", "unclosed table"),
        ] {
            assert!(TEXT.contains(from), "{from}");
            std::fs::write(file.path(), TEXT.replacen(from, to, 1)).unwrap();
            let message = Profile::open(file.path()).unwrap_err().to_string();
            assert!(message.starts_with(&file.path().display().to_string()), "{message}");
            assert!(message.contains(says) && !message.contains('\n'), "{to}: {message}");
        }
        assert!(matches!(Profile::open(Path::new("/no/such.toml")), Err(Error::Io { .. })));
    }

    #[test]
    fn a_profile_of_another_model_is_refused() {
        let check = |names: &[&str]| {
            let subnet = |name: &&str| Subnet {
                name: name.to_string(),
                ratio: 1.0,
                parameters: 1,
                macs: 1,
                widths: Default::default(),
            };
            let subnets: Vec<Subnet> = names.iter().map(subnet).collect();
            profile().check_against(&subnets, Path::new("p.toml")).map_err(|error| error.to_string())
        };
        assert_eq!(check(&["0.500", "full"]), Ok(()));
        let says = "p.toml: latency[0].subnet: the model has no `0.500`; it has 0.250, full";
        assert_eq!(check(&["0.250", "full"]), Err(says.to_owned()));
        let says = "p.toml: latency: the model's subnet 0.750 is missing; run `accordion profile`";
        assert_eq!(check(&["0.500", "0.750", "full"]), Err(says.to_owned()));
    }

    #[test]
    fn the_processor_s_name_is_found_where_there_is_one() {
        let info = "processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC 9654\nstepping\t: 1\nmodel name\t: other";
        assert_eq!(model_name(info), Some("AMD EPYC 9654"));
        assert_eq!(model_name("model name\t:\n"), None);
        assert_eq!(model_name("processor\t: 0\nBogoMIPS\t: 50"), None);
        assert!(!Device::here(1).cpu.is_empty());
    }
}

//! Which device a model runs on, by name.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Placement {
    /// The processor.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this index.
    Cuda(usize),
}

impl FromStr for Placement {
    type Err = String;

    /// # Errors
    /// One sentence that says what is accepted.
    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("device `{text}` is unknown: accepted are cpu, cuda:0, cuda:1 and so on");
        match text.strip_prefix("cuda:") {
            // As digits only: `parse` takes a sign too.
            Some(index) if index.bytes().all(|byte| byte.is_ascii_digit()) => {
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
            None if text == "cpu" => Ok(Self::Cpu),
            _ => Err(unknown()),
        }
    }
}

impl TryFrom<String> for Placement {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Placement> for String {
    fn from(placement: Placement) -> Self {
        placement.to_string()
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for (text, placement) in
            [("cpu", Placement::Cpu), ("cuda:0", Placement::Cuda(0)), ("cuda:12", Placement::Cuda(12))]
        {
            assert_eq!((text.parse(), placement.to_string()), (Ok(placement), text.to_owned()));
        }
        for text in ["", "gpu", "cuda", "cuda:", "cuda:+1", "cuda:-1", "cuda:x", "CPU", "cuda:99999999999999999999"] {
            let message = text.parse::<Placement>().unwrap_err();
            assert_eq!(message, format!("device `{text}` is unknown: accepted are cpu, cuda:0, cuda:1 and so on"));
        }
    }
}

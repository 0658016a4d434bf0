//! The name under which a subnet is known.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

/// The name of the subnet that keeps everything.
pub const FULL: &str = "full";

/// `full`, or a ratio below 1 with three decimals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SubnetName(String);

impl SubnetName {
    /// The whole network's.
    pub fn full() -> Self {
        Self(FULL.to_owned())
    }

    /// That of a ratio, which is rounded to three decimals; of 1 and more it is [`Self::full`].
    pub fn of(ratio: f64) -> Self {
        if ratio < 0.9995 { Self(format!("{ratio:.3}")) } else { Self::full() }
    }

    /// Whether it is the whole network's.
    pub fn is_full(&self) -> bool {
        self.0 == FULL
    }
}

impl FromStr for SubnetName {
    type Err = Error;

    /// `0.5` is `0.500`, and `1` is `full`.
    ///
    /// # Errors
    /// If `text` is neither `full` nor a decimal number that rounds to 0.001 to 1.000.
    fn from_str(text: &str) -> Result<Self> {
        Self::try_from(text.to_owned()).map_err(|problem| Error::input("plan", problem))
    }
}

/// A plain decimal number such as `12` or `0.25`, rounded to three decimals. `f64::from_str` would also take a sign, an
/// exponent, `inf` and `nan`.
pub(crate) fn thousandths(text: &str) -> Option<f64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let number: f64 = (digits(whole) && digits(fraction)).then(|| text.parse().ok()).flatten()?;
    Some((number * 1000.0).round() / 1000.0)
}

impl TryFrom<String> for SubnetName {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        if text == FULL {
            return Ok(Self::full());
        }
        match thousandths(&text) {
            Some(ratio) if ratio > 0.0 && ratio <= 1.0 => Ok(Self::of(ratio)),
            _ => Err(format!("subnet {text:?} is not full or a ratio from 0.001 to 1, such as 0.250")),
        }
    }
}

impl From<SubnetName> for String {
    fn from(name: SubnetName) -> Self {
        name.0
    }
}

impl Deref for SubnetName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SubnetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl PartialEq<str> for SubnetName {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for SubnetName {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl PartialEq<String> for SubnetName {
    fn eq(&self, other: &String) -> bool {
        self.0 == *other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnet_names_have_three_decimals() {
        for (text, name) in [("full", "full"), ("0.5", "0.500"), ("1", "full"), ("1.0", "full"), ("0.001", "0.001")] {
            assert_eq!(text.parse::<SubnetName>().unwrap(), name);
        }
        for text in
            ["", "0", "0.0001", "1.001", "-0.5", "+0.5", "5e-1", ".5", "1.", "nan", "inf", "Full", "0.5 ", "٠.٥"]
        {
            assert!(text.parse::<SubnetName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_ratio_that_rounds_to_the_whole_network_is_full() {
        assert_eq!(
            [0.25, 0.9994, 0.9995, 1.0].map(SubnetName::of).map(String::from),
            ["0.250", "0.999", "full", "full"]
        );
    }
}

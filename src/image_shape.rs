//! The size of an image.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The size of an image, in pixels and channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageShape {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Colour channels: 1 or 3.
    pub channels: usize,
}

impl ImageShape {
    /// Values of one image.
    pub fn elements(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Its columns and rows.
    pub fn size(&self) -> Size {
        Size { width: self.width, height: self.height }
    }
}

/// The size of a picture as people write it: `512x768` is 512 columns and 768 rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for Size {
    type Err = String;

    /// # Errors
    /// One sentence that says the form.
    fn from_str(text: &str) -> Result<Self, String> {
        let side = |text: &str| text.parse().ok().filter(|side| *side > 0 && text.bytes().all(|b| b.is_ascii_digit()));
        let size =
            text.split_once('x').and_then(|(width, height)| Some(Self { width: side(width)?, height: side(height)? }));
        size.ok_or_else(|| format!("{text:?} is not <columns>x<rows>, such as 512x512"))
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_columns_then_rows() {
        assert_eq!("512x768".parse(), Ok(Size { width: 512, height: 768 }));
        assert_eq!(Size { width: 512, height: 768 }.to_string(), "512x768");
        for text in ["", "512", "512x", "x512", "0x512", "512x512x3", "+512x512", "512X512", " 512x512"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}

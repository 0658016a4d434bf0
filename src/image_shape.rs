//! The size of an image.

/// The size of an image, in pixels and channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

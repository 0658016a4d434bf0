//! The networks in whose features the quality of images is measured.

mod bilinear;
mod inception;
mod runner;

pub use inception::Inception;
pub use runner::Runner;

use crate::{ImageShape, Result};

/// What turns images into features.
pub trait Features: Send {
    /// Features of an image.
    fn dim(&self) -> usize;

    /// `[n, dim]` of images uint8 `[n, height, width, channels]` of this size, in the order of a picture's bytes.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a size that it does not take; a device fault.
    fn of(&mut self, images: &[u8], shape: ImageShape) -> Result<Vec<f32>>;
}

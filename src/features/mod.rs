//! The networks in whose features the quality of images is measured, and the distances between sets of features.

mod bilinear;
pub mod classifier;
pub mod clip;
pub mod frechet;
mod inception;
pub mod kid;
pub mod manifold;
mod reference;
pub mod sample;

pub use classifier::Classifier;
pub use clip::Clip;
pub use inception::Inception;
pub use reference::Reference;

use crate::{ImageShape, Result};

/// What turns images into features.
pub trait Features: Send {
    /// Features of an image.
    fn dim(&self) -> usize;

    /// `[n, dim]` of images uint8 `[n, height, width, channels]` of this size.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a size that it does not take; a device fault.
    fn of(&mut self, images: &[u8], shape: ImageShape) -> Result<Vec<f32>>;
}

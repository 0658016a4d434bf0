//! What a denoiser learns from.

use crate::philox::Stream;
use crate::{Error, ImageShape, Result};

/// N examples of what a denoiser shall draw, each of a class or with a caption; at least one.
pub trait Examples: Sync {
    /// N.
    fn count(&self) -> usize;

    /// The size of each: of a picture, or of the latent of one.
    fn shape(&self) -> ImageShape;

    /// Writes example `index < N`, mirrored or not, into `x0`, `[height, width, channels]` row-major in the units of the denoiser;
    /// `chance` draws what the encoder of latents leaves to it.
    fn write(&self, index: usize, is_mirrored: bool, chance: &Stream, x0: &mut [f32]);

    /// What example `index < N` is of: the index of its class, or of its caption.
    fn label(&self, index: usize) -> usize;

    /// The names of the classes by label; empty where there are none, as of examples with captions.
    fn classes(&self) -> &[String];

    /// Every caption once, by label; empty where examples have none.
    fn captions(&self) -> &[String];

    /// What a network that reads texts is told of samples with these labels, of `None` that of the empty caption, one after the other:
    /// `[B, tokens, channels]`. Empty where examples have no captions.
    ///
    /// # Errors
    /// As [`crate::text::Contexts::of`].
    fn contexts(&self, labels: &[Option<usize>]) -> Result<Vec<f32>>;

    /// Mean and (population) standard deviation over all values.
    fn statistics(&self) -> (f64, f64);

    /// One line for people: how many there are, of which size and of what.
    fn summary(&self) -> String;

    /// Checks that they are of the size that a network takes, and their classes as many as it has (0: it ignores them).
    ///
    /// # Errors
    /// [`Error::Input`] about `data`.
    fn check(&self, image: ImageShape, classes: usize) -> Result<()> {
        if self.shape() != image {
            let problem = format!("images are {:?}, but the network takes {image:?}", self.shape());
            return Err(Error::input("data", problem));
        }
        if classes > 0 && self.classes().len() != classes {
            let problem = format!("has {} classes, but the network has {classes}", self.classes().len());
            return Err(Error::input("data", problem));
        }
        Ok(())
    }
}

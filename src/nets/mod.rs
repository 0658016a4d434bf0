//! Backbones built of blocks: they say what is computed.

mod about;
pub mod adm;
pub mod backbone;
pub mod builder;
mod codec;
mod decoder;
pub mod device_runner;
pub mod diffusers;
mod edm_unet;
mod extraction;
pub mod host_runner;
pub mod inception;
mod layer_by_layer;
mod methods;
pub mod model;
pub mod network;
pub mod on_cpu;
pub mod on_gpu;
pub mod on_tape;
pub mod opened;
pub mod placement;
mod preview;
pub mod program;
pub mod public;
pub mod public_config;
pub mod recognition;
mod rows;
mod runner;
mod sampler;
pub mod sliced;
pub mod song_unet;
pub mod subnet_table;
pub mod text_to_image;
pub mod u_vit;
pub mod unet;
pub mod vae;
mod warm;

pub use about::{About, Canvas};
pub use backbone::Backbone;
pub use codec::{Codec, Encoder};
pub use decoder::Decoder;
pub use device_runner::DeviceRunner;
pub use host_runner::{HostRunner, Threads};
pub use model::Model;
pub use network::Network;
pub use opened::{Opened, open};
pub use placement::Placement;
pub use preview::Preview;
pub use rows::{Condition, Rows};
pub use runner::Runner;
pub use sampler::{Begin, Guide, HostSampler, Known, Move, Sampler, Slot, Source};
pub use warm::warm;

use crate::Result;
use crate::diffusion::Level;

/// A denoiser `D(x; sigma, condition)` at several widths, in the host's memory.
pub trait Denoiser: Send {
    /// What there is to know of it.
    fn about(&self) -> &About;

    /// Memory in its buffers of activations.
    fn activation_bytes(&self) -> usize;

    /// One call on a batch of samples, each with its own noise level and condition. Returns the denoised images in the layout of
    /// [`Rows::x`].
    ///
    /// # Errors
    /// Only on a device fault: shapes and indices are the caller's contract.
    fn denoise(&mut self, subnet: usize, rows: &Rows) -> Result<Vec<f32>>;

    /// The picture of an image of the usual size that was denoised, in [-1, 1], by the subnet of the decoder of this index: the image
    /// itself where nothing decodes it.
    ///
    /// # Errors
    /// On a device fault, and where the picture of a latent is not finite.
    fn picture(&mut self, decoder: usize, image: &[f64]) -> Result<Vec<f64>> {
        let _ = decoder;
        Ok(image.to_vec())
    }

    /// As [`Self::denoise`], on images of the network's own size, each of a class or of nothing.
    ///
    /// # Errors
    /// As [`Self::denoise`].
    fn denoise_classes(
        &mut self,
        subnet: usize,
        x: &[f32],
        sigma: &[f64],
        class: &[Option<usize>],
    ) -> Result<Vec<f32>> {
        let levels: Vec<Level> = sigma.iter().copied().map(Level::from).collect();
        let conditions: Vec<Condition> = class.iter().copied().map(Condition::from).collect();
        let image = self.about().state();
        self.denoise(subnet, &Rows { image, x, beside: &[], levels: &levels, conditions: &conditions })
    }
}

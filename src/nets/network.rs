//! A backbone with its preconditioning: the denoiser as a function of its weights.

use super::ImageShape;
use super::sliced::Sliced;
use super::song_unet::compiled::Compiled;
use super::song_unet::packed::Packed;
use super::song_unet::{self, SongUnet};
use crate::Result;
use crate::diffusion::preconditioning::{Coefficients, Preconditioning};
use crate::ops::Tape;
use crate::ops::cuda::Element;
use crate::supernet::{Spec, Supernet, Widths};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// The backbones that a model directory can name, with their options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "arch", rename_all = "kebab-case")]
pub enum Backbone {
    /// DDPM++ and NCSN++.
    SongUnet(song_unet::Config),
}

/// A backbone with its preconditioning.
#[derive(Debug)]
pub struct Network {
    net: SongUnet,
    preconditioning: Preconditioning,
}

/// One call on a batch, kept until its gradient is known.
pub struct Call {
    /// The raw network's output F: `[B, H, W, C]`.
    pub raw: Tensor,
    /// The denoised images: `[B, H, W, C]`.
    pub denoised: Vec<f32>,
    /// The coefficients of each sample.
    pub coefficients: Vec<Coefficients>,
}

impl Network {
    /// Lays the network out.
    ///
    /// # Errors
    /// [`crate::Error::Input`] with the option that does not fit.
    pub fn new(backbone: &Backbone, preconditioning: Preconditioning) -> Result<Self> {
        let Backbone::SongUnet(config) = backbone;
        Ok(Self { net: SongUnet::new(config.clone())?, preconditioning })
    }

    /// The network as a table.
    pub fn spec(&self) -> &Spec {
        self.net.spec()
    }

    /// The size of its images.
    pub fn image(&self) -> ImageShape {
        let config = self.net.config();
        ImageShape { height: config.img_resolution, width: config.img_resolution, channels: config.img_channels }
    }

    /// The number of its classes; 0 if it is unconditional.
    pub fn classes(&self) -> usize {
        self.net.config().label_dim
    }

    /// How it is wrapped.
    pub fn preconditioning(&self) -> Preconditioning {
        self.preconditioning
    }

    /// `D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)` on a batch (Karras et al. 2022, eq. 7).
    ///
    /// `x` is `[B, H, W, C]`; `labels` is `[B, classes]`, empty for an unconditional network.
    pub fn call(&self, tape: &Tape, w: &Sliced, x: &[f32], sigma: &[f64], labels: &[f32]) -> Result<Call> {
        let ImageShape { height, width, channels } = self.image();
        let elements = self.image().elements();
        let batch = sigma.len();
        let coefficients: Vec<_> = sigma.iter().map(|&sigma| self.preconditioning.coefficients(sigma)).collect();
        let mut input = Vec::with_capacity(x.len());
        for (x, c) in x.chunks_exact(elements).zip(&coefficients) {
            input.extend(x.iter().map(|&x| c.input(x)));
        }
        let input = Tensor::from_vec(input, (batch, height, width, channels), &Device::Cpu)?;
        let noise: Vec<f32> = coefficients.iter().map(|c| c.c_noise as f32).collect();
        let labels = match self.classes() {
            0 => None,
            classes => Some(Tensor::from_slice(labels, (batch, classes), &Device::Cpu)?),
        };
        let raw = self.net.forward(tape, w, &input, &noise, labels.as_ref())?;
        let mut denoised = raw.flatten_all()?.to_vec1::<f32>()?;
        for ((raw, x), c) in denoised.chunks_exact_mut(elements).zip(x.chunks_exact(elements)).zip(&coefficients) {
            raw.iter_mut().zip(x).for_each(|(raw, &x)| *raw = c.denoised(x, *raw));
        }
        Ok(Call { raw, denoised, coefficients })
    }

    /// The weights as inference wants them.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] on a device fault.
    pub fn pack(&self, supernet: &Supernet) -> Result<Packed> {
        Packed::new(&self.net, supernet)
    }

    /// The network and these subnets for a GPU, and the block of bytes that belongs in its memory.
    ///
    /// # Errors
    /// As [`Compiled::new`].
    pub fn compile(&self, supernet: &Supernet, element: Element, subnets: &[Widths]) -> Result<(Compiled, Vec<u8>)> {
        Compiled::new(&self.net, supernet, element, subnets)
    }

    /// The label rows of these classes: one-hot, or zeros for the unconditional call.
    pub fn labels(&self, classes: &[Option<usize>]) -> Vec<f32> {
        let width = self.classes();
        let mut rows = vec![0.0; classes.len() * width];
        for (row, class) in classes.iter().enumerate() {
            if let Some(class) = class.filter(|&class| class < width) {
                rows[row * width + class] = 1.0;
            }
        }
        rows
    }
}

//! A model for a machine, before there is one: what belongs in its memory, how much of it, and what is launched.

use super::codec::CompiledCodec;
use super::control::Control;
use super::texts::Texts;
use super::{ALIGN, MOST, PAGE, step};
use crate::nets::network::Network;
use crate::nets::on_gpu::{Addresses, Compiled};
use crate::nets::{About, Model};
use crate::ops::cuda::{Launch, Precision, pixels, sampler};
use crate::supernet::Supernet;
use crate::{Error, ImageShape, Result};
use serde::Serialize;

/// A model and the most samples of a call, as a machine takes them.
#[derive(Debug)]
pub struct Blueprint {
    pub(super) network: Network,
    pub(super) compiled: Compiled,
    pub(super) weights: Vec<u8>,
    pub(super) codec: Option<CompiledCodec>,
    /// Tokens and channels of a text, of a network that reads texts.
    pub(super) text: Option<[usize; 2]>,
    pub(super) about: About,
    pub(super) most: usize,
    /// Of what is denoised.
    pub(super) states: Vec<ImageShape>,
}

/// Bytes of a machine's memory that are allocated at the start, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The weights of all subnets once, and their tables of groups.
    pub weights: usize,
    /// The activations of the largest call, of any subnet and size; those of a codec take their turns in it.
    pub activations: usize,
    /// What a call is told.
    pub control: usize,
    /// The bytes of a picture.
    pub picture: usize,
    /// Images that are being drawn, as many as are allocated at once.
    pub images: usize,
    /// Texts that calls read.
    pub texts: usize,
    /// What is between pictures and latents: the weights of both of its halves, the decoder's once for all of its subnets, an input and an output.
    pub codec: usize,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> usize {
        let Self { weights, activations, control, picture, images, texts, codec } = self;
        weights + activations + control + picture + images + texts + codec
    }
}

impl Blueprint {
    /// That of a model with its weights `supernet`, for calls on `most` samples, at least on two. Where nobody else holds the weights,
    /// their memory is given back on the way.
    ///
    /// # Errors
    /// [`Error::Input`] for a network that the kernels do not take, or too many samples; [`Error::Tensor`] on a device fault.
    pub fn new(model: &Model, supernet: Supernet, precision: Precision, most: usize) -> Result<Self> {
        // An image under guidance is two.
        let most = most.max(2);
        if most > MOST {
            let problem = format!("{most} is not accepted on a GPU: it must be at most {MOST}");
            return Err(Error::input("max_batch", problem));
        }
        let network = model.network.clone();
        let channels = network.state().channels;
        if !sampler::CHANNELS.contains(&channels) {
            let problem = format!("images of {channels} channels run on the CPU only; give `--device cpu`");
            return Err(Error::input("backbone", problem));
        }
        let widths: Vec<_> = (0..model.table.subnets.len()).map(|subnet| model.widths(subnet)).collect();
        let (compiled, weights) = network.compile(supernet, precision, &widths)?;
        let codec = CompiledCodec::of(model, precision)?;
        let about = About::of(model, weights.len());
        let states = about.canvases.iter().map(|canvas| canvas.state).collect();
        Ok(Self { text: network.program().context(), network, compiled, weights, codec, about, most, states })
    }

    /// The type of activations and weights.
    fn precision(&self) -> Precision {
        self.compiled.precision()
    }

    /// What it takes of a machine's memory.
    pub fn memory(&self) -> Memory {
        let (states, precision) = (&self.states, self.precision());
        let activations = states.iter().map(|&size| self.compiled.arena_bytes(size, self.most)).max().unwrap_or(0);
        let codec = self.codec.as_ref();
        Memory {
            weights: self.about.weight_bytes,
            activations: activations.max(codec.map_or(0, |codec| codec.arena_bytes(states))),
            control: Control::bytes(self.most),
            picture: codec.map_or_else(|| pixels::bytes(states[0]), |codec| codec.picture_bytes(states)),
            images: page_bytes(precision, states, self.network.beside()),
            texts: self.text.map_or(0, |shape| Texts::bytes(shape, precision, self.most)),
            codec: codec.map_or(0, |codec| codec.bytes(states)),
        }
    }

    /// What a step of a subnet is made of, on so many samples of the usual size.
    pub fn step(&self, subnet: usize, samples: usize) -> Vec<Launch> {
        let size = (self.states[0], self.network.beside());
        step(&self.compiled, size, subnet, samples, &Addresses::default(), [0; 2])
    }

    /// What making a latent of a picture of the usual size is made of, where the model draws latents.
    pub fn encoding(&self) -> Option<Vec<Launch>> {
        Some(self.codec.as_ref()?.encoding(self.about.picture(), &Addresses::default()))
    }

    /// What making a picture of a latent of the usual size by a subnet of the decoder is made of, where the model draws latents.
    pub fn decoding(&self, decoder: usize) -> Option<Vec<Launch>> {
        Some(self.codec.as_ref()?.decoding(decoder, self.states[0], &Addresses::default(), &Default::default()))
    }
}

/// Bytes of the arrays of one image that is being drawn, of any of these sizes, as whole places.
pub(super) struct Arrays {
    /// Of its seven arrays of values.
    pub state: usize,
    pub mask: usize,
    pub beside: usize,
    pub input: usize,
}

impl Arrays {
    /// For a network that is given so many channels `beside` what it denoises.
    pub fn of(precision: Precision, states: &[ImageShape], beside: usize) -> Self {
        let most = |bytes: &dyn Fn(ImageShape) -> usize| {
            states.iter().map(|&size| bytes(size)).max().unwrap_or(0).next_multiple_of(ALIGN)
        };
        Self {
            state: most(&sampler::state_bytes),
            mask: most(&sampler::mask_bytes),
            beside: most(&|size| sampler::beside_bytes(size, beside)),
            input: most(&|size| sampler::input_bytes(precision, size, beside)),
        }
    }

    /// All of them.
    pub fn bytes(&self) -> usize {
        7 * self.state + self.mask + self.beside + self.input
    }
}

/// Memory of as many images as are allocated at once.
pub(super) fn page_bytes(precision: Precision, states: &[ImageShape], beside: usize) -> usize {
    PAGE * Arrays::of(precision, states, beside).bytes()
}

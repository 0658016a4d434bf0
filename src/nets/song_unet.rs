//! SongUNet: the DDPM++ and NCSN++ backbones of Karras et al. 2022 (after Song et al. 2021), as NVlabs/edm defines them.

use super::backbone::Architecture;
use super::builder::{Builder, Draw, Weight};
use super::edm_unet::{self, Place, Side, Size, Style};
use super::program::{Channels, ClassRows, Embedding, Frequencies, Product, Waves};
use crate::ImageShape;
use crate::ops::Act;
use crate::supernet::spec::{Init, Public};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::f32::consts::SQRT_2;

/// How the network is told the noise level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingType {
    /// Sines and cosines of geometric frequencies (DDPM++).
    Positional,
    /// Sines and cosines of random frequencies, kept in the checkpoint (NCSN++).
    Fourier,
}

/// What runs beside the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoder {
    /// Nothing (DDPM++).
    Standard,
    /// A strided copy of the image, added at each resolution (NCSN++).
    Residual,
}

/// What runs beside the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decoder {
    /// Nothing.
    Standard,
}

/// The options of a SongUNet, under the names of NVlabs/edm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Rows and columns of the image.
    pub img_resolution: usize,
    /// Colour channels.
    pub img_channels: usize,
    /// Classes; 0 for an unconditional network.
    #[serde(default)]
    pub label_dim: usize,
    /// Channels at the first level.
    pub model_channels: usize,
    /// Channels of each level over `model_channels`.
    pub channel_mult: Vec<usize>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    pub num_blocks: usize,
    /// Resolutions whose blocks have attention.
    pub attn_resolutions: Vec<usize>,
    /// Dropout rate in training; an imported network's is not used.
    #[serde(default)]
    pub dropout: f64,
    /// Width of the augmentation label of an imported network; the label is always absent here.
    #[serde(default)]
    pub augment_dim: usize,
    /// How the network is told the noise level.
    pub embedding_type: EmbeddingType,
    /// What runs beside the encoder.
    pub encoder_type: Encoder,
    /// What runs beside the decoder.
    pub decoder_type: Decoder,
    /// Width of the noise embedding over `model_channels`.
    #[serde(default = "one")]
    pub channel_mult_noise: usize,
    /// Width of the embedding that the blocks see, over `model_channels`.
    #[serde(default = "four")]
    pub channel_mult_emb: usize,
    /// The 1-D filter of the resampling.
    pub resample_filter: Vec<f32>,
    /// Widths of the pipes that are narrower than their block, by name: what an extracted subnet keeps.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pipe_widths: BTreeMap<String, usize>,
}

fn one() -> usize {
    1
}

fn four() -> usize {
    4
}

impl Architecture for Config {
    fn image(&self) -> ImageShape {
        ImageShape { height: self.img_resolution, width: self.img_resolution, channels: self.img_channels }
    }

    fn classes(&self) -> usize {
        self.label_dim
    }

    fn pipe_widths(&self) -> &BTreeMap<String, usize> {
        &self.pipe_widths
    }

    fn pipe_widths_mut(&mut self) -> &mut BTreeMap<String, usize> {
        &mut self.pipe_widths
    }

    fn resample_filter(&self) -> &[f32] {
        &self.resample_filter
    }

    fn warning(&self) -> Option<String> {
        edm_unet::warning(self.img_resolution, &self.channel_mult, &self.attn_resolutions)
    }

    fn check_trainable(&self) -> std::result::Result<(), (&'static str, &'static str)> {
        edm_unet::check_trainable(self.dropout, self.augment_dim)
    }

    fn check(&self) -> Result<()> {
        edm_unet::check(self.img_resolution, self.img_channels, self.model_channels, &self.channel_mult)?;
        if self.num_blocks == 0 || self.channel_mult_noise == 0 || self.channel_mult_emb == 0 {
            return Err(Error::input("num_blocks, channel_mult_noise and channel_mult_emb", "must be positive"));
        }
        let taps = self.resample_filter.len();
        if taps == 0 || taps % 2 == 1 || self.resample_filter.iter().sum::<f32>() == 0.0 {
            let problem = "must have an even number of taps whose sum is not zero";
            return Err(Error::input("resample_filter", problem));
        }
        Ok(())
    }

    fn build(&self, b: &mut Builder) -> Result<()> {
        let emb = embed(b, self);
        let size = Size {
            side: self.img_resolution,
            channels: self.model_channels,
            levels: &self.channel_mult,
            blocks: self.num_blocks,
        };
        let last = ["norm", "conv"].map(|part| format!("dec.{0}x{0}_aux_{part}", self.img_resolution));
        let style = Style {
            eps: 1e-6,
            scale: SQRT_2 / 2.0,
            film: false,
            emb,
            filter: &self.resample_filter,
            resample_proj: true,
            aux: self.encoder_type == Encoder::Residual,
            heads,
            attn_resolutions: &self.attn_resolutions,
            last: last.each_ref().map(String::as_str),
            draws: [1.0, 0.2f64.sqrt(), 1e-5].map(Draw::Xavier),
        };
        edm_unet::build(b, &size, &style)
    }
}

/// One head, in every encoder block and the last decoder block at the resolutions asked for, and in the first of the middle.
fn heads(Place { res, side, index: (index, of) }: Place, attn_resolutions: &[usize], _c_out: usize) -> usize {
    let asked = attn_resolutions.contains(&res);
    usize::from(match side {
        Side::Encoder => asked,
        Side::Middle => index == 0,
        Side::Decoder => asked && index + 1 == of,
    })
}

/// The embedding that every block sees, and the layer of what they make of it; its channels.
fn embed(b: &mut Builder, config: &Config) -> usize {
    let (noise, channels) =
        (config.model_channels * config.channel_mult_noise, config.model_channels * config.channel_mult_emb);
    let half = noise / 2;
    let frequencies = match config.embedding_type {
        EmbeddingType::Positional => {
            // endpoint = True: the last frequency is 1 / 10000 exactly.
            let exponent = |i: usize| i as f32 / (half - 1).max(1) as f32;
            Frequencies::Fixed((0..half).map(|i| (1.0f32 / 10000.0).powf(exponent(i))).collect())
        }
        EmbeddingType::Fourier => {
            Frequencies::Param(b.buffer("map_noise.freqs", &[half], Public::vector(), Init::Normal(16.0)))
        }
    };
    let class = (config.label_dim > 0).then(|| {
        let layer = b.linear(
            "map_label",
            Channels::Fixed(config.label_dim),
            Channels::Fixed(noise),
            Weight::new(Draw::Xavier(1.0)),
        );
        // EDM scales one-hot rows by the root of their length.
        ClassRows { weight: layer.weight, bias: layer.bias, scale: (config.label_dim as f32).sqrt() }
    });
    edm_unet::augmentation(b, config.augment_dim, noise);
    // EDM computes cosines first, then swaps the halves.
    let waves = Some(Waves { frequencies, cosines_first: false });
    let mut emb = b.embedding("embedding", Embedding { waves, class }, noise);
    for (index, from) in [noise, channels].into_iter().enumerate() {
        let (from, to) = (Channels::Fixed(from), Channels::Fixed(channels));
        let layer = b.linear(&format!("map_layer{index}"), from, to, Weight::new(Draw::Xavier(1.0)));
        emb = b.product(Product { act: Some(Act::Silu), ..Product::new(emb, layer, [1; 2]) });
    }
    b.branches(emb);
    channels
}

//! ADM: the U-Net of Dhariwal and Nichol 2021, as NVlabs/edm defines it (`DhariwalUNet`).

use super::backbone::Architecture;
use super::builder::{Builder, Draw, Weight};
use super::edm_unet::{self, Place, Side, Size, Style};
use super::program::{Channels, ClassRows, Embedding, Frequencies, Product, Waves};
use crate::ImageShape;
use crate::ops::Act;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The filter of the resampling: means of neighbours down, copies up.
const FILTER: [f32; 2] = [1.0, 1.0];
/// Channels of a head of attention.
const HEAD: usize = 64;

/// The options of an ADM network, under the names of NVlabs/edm.
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
    /// Width of the embedding that the blocks see, over `model_channels`.
    #[serde(default = "four")]
    pub channel_mult_emb: usize,
    /// Widths of the pipes that are narrower than their block, by name: what an extracted subnet keeps.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pipe_widths: BTreeMap<String, usize>,
}

fn four() -> usize {
    4
}

/// Heads of `HEAD` channels, wherever there are as many: in the first of the middle blocks, and at the resolutions asked for.
fn heads(Place { res, side, index }: Place, attn_resolutions: &[usize], c_out: usize) -> usize {
    match side {
        Side::Middle if index.0 == 0 => c_out / HEAD,
        Side::Encoder | Side::Decoder if attn_resolutions.contains(&res) => c_out / HEAD,
        _ => 0,
    }
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
        &FILTER
    }

    fn warning(&self) -> Option<String> {
        edm_unet::warning(self.img_resolution, &self.channel_mult, &self.attn_resolutions)
    }

    fn check_trainable(&self) -> std::result::Result<(), (&'static str, &'static str)> {
        edm_unet::check_trainable(self.dropout, self.augment_dim)
    }

    fn check(&self) -> Result<()> {
        edm_unet::check(self.img_resolution, self.img_channels, self.model_channels, &self.channel_mult)?;
        if self.num_blocks == 0 || self.channel_mult_emb == 0 {
            return Err(Error::input("num_blocks and channel_mult_emb", "must be positive"));
        }
        for mult in &self.channel_mult {
            let (c_out, heads) = (mult * self.model_channels, mult * self.model_channels / HEAD);
            if heads > 0 && !c_out.is_multiple_of(heads) {
                return Err(Error::input("channel_mult", format!("{c_out} channels do not divide into {heads} heads")));
            }
        }
        Ok(())
    }

    fn build(&self, b: &mut Builder) -> Result<()> {
        let draw = Draw::Kaiming((1.0f64 / 3.0).sqrt());
        let (noise, emb) = (self.model_channels, self.model_channels * self.channel_mult_emb);
        let half = noise / 2;
        let frequencies = (0..half).map(|i| (1.0f32 / 10000.0).powf(i as f32 / half as f32)).collect();
        let waves = Some(Waves { frequencies: Frequencies::Fixed(frequencies), cosines_first: true });
        let x = b.embedding("embedding", Embedding { waves, class: None }, noise);
        edm_unet::augmentation(b, self.augment_dim, noise);
        let layer0 = b.linear("map_layer0", Channels::Fixed(noise), Channels::Fixed(emb), Weight::new(draw));
        let layer1 = b.linear("map_layer1", Channels::Fixed(emb), Channels::Fixed(emb), Weight::new(draw));
        let label = (self.label_dim > 0).then(|| {
            let weight = Weight::new(Draw::Normal(1.0)).without_bias();
            let layer = b.linear("map_label", Channels::Fixed(self.label_dim), Channels::Fixed(emb), weight);
            let class = Some(ClassRows { weight: layer.weight, bias: None, scale: 1.0 });
            b.embedding("map_label", Embedding { waves: None, class }, emb)
        });
        let act = Some(Act::Silu);
        let x = b.product(Product { act, ..Product::new(x, layer0, [1; 2]) });
        let x = b.product(Product { act, residual: label, ..Product::new(x, layer1, [1; 2]) });
        b.branches(x);
        let size = Size {
            side: self.img_resolution,
            channels: self.model_channels,
            levels: &self.channel_mult,
            blocks: self.num_blocks,
        };
        let style = Style {
            eps: 1e-5,
            scale: 1.0,
            film: true,
            emb,
            filter: &FILTER,
            resample_proj: false,
            aux: false,
            heads,
            attn_resolutions: &self.attn_resolutions,
            last: ["out_norm", "out_conv"],
            draws: [draw, draw, Draw::Kaiming(0.0)],
        };
        edm_unet::build(b, &size, &style)
    }
}

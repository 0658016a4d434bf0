//! SongUNet: the DDPM++ and NCSN++ backbones of Karras et al. 2022 (after Song et al. 2021), as NVlabs/edm defines them.

use super::ImageShape;
use super::builder::{Builder, Draw, Weight};
use super::program::{Channels, ClassRows, Embedding, Frequencies, Product, Program, Resample, ValueId, View, Waves};
use crate::ops::Act;
use crate::ops::cpu::resample::Direction;
use crate::supernet::spec::{Init, Pipe, PipeKind, Public};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::f32::consts::SQRT_2;
use std::sync::Arc;

const EPS: f32 = 1e-6;
/// Attention heads of a block, as in every published SongUNet.
const HEADS: usize = 1;
/// Scale after each residual sum.
const SKIP_SCALE: f32 = SQRT_2 / 2.0;

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

impl Config {
    /// The size of its images.
    pub fn image(&self) -> ImageShape {
        ImageShape { height: self.img_resolution, width: self.img_resolution, channels: self.img_channels }
    }

    /// Attention at resolutions that no level has.
    pub fn warning(&self) -> Option<String> {
        let levels: Vec<usize> = (0..self.channel_mult.len()).map(|level| self.img_resolution >> level).collect();
        let list = |sides: Vec<&usize>| sides.into_iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let missed: Vec<&usize> = self.attn_resolutions.iter().filter(|side| !levels.contains(side)).collect();
        let says = |missed| {
            format!("attn_resolutions: no level of the network has {missed}; it has {}", list(levels.iter().collect()))
        };
        (!missed.is_empty()).then(|| says(list(missed)))
    }

    /// Whether training does all that the options ask for.
    ///
    /// # Errors
    /// A field, and what of it is not supported.
    pub fn check_trainable(&self) -> std::result::Result<(), (&'static str, &'static str)> {
        match self {
            Self { dropout, .. } if *dropout != 0.0 => {
                Err(("dropout", "training with dropout is not supported; set it to 0"))
            }
            Self { augment_dim: 1.., .. } => {
                Err(("augment_dim", "training with augmentation labels is not supported; set it to 0"))
            }
            _ => Ok(()),
        }
    }

    /// The network.
    ///
    /// # Errors
    /// [`Error::Input`] with the field that does not fit.
    pub fn program(&self) -> Result<Program> {
        self.check()?;
        if !self.pipe_widths.is_empty() {
            let whole = Self { pipe_widths: BTreeMap::new(), ..self.clone() }.program()?;
            self.check_pipe_widths(&whole)?;
        }
        let program = build(self);
        // A pipe's norm takes as many groups as divide its width.
        let params = program.spec.params.iter();
        let norms = params.filter(|param| param.init == Init::Constant(1.0) && param.slices.is_empty());
        for channels in norms.map(|norm| norm.shape[0]) {
            if !channels.is_multiple_of(groups(channels)) {
                let problem =
                    format!("{channels} channels do not divide into the {} groups of GroupNorm", groups(channels));
                return Err(Error::input("model_channels", problem));
            }
        }
        Ok(program)
    }

    /// Whether a network that is `whole` otherwise can have pipes of these widths.
    fn check_pipe_widths(&self, whole: &Program) -> Result<()> {
        for (name, &width) in &self.pipe_widths {
            let place = format!("pipe_widths.{name}");
            match whole.spec.pipes.iter().find(|pipe| pipe.name == *name) {
                None => return Err(Error::input(place, "the network has no such pipe")),
                Some(pipe) if width > pipe.width => {
                    return Err(Error::input(place, format!("{width} is not a width from 0 to {}", pipe.width)));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Checks what the types do not. The error is the field and what it accepts.
    fn check(&self) -> Result<()> {
        let levels = self.channel_mult.len();
        let refuse = |field: &str, problem: String| Err(Error::input(field, problem));
        if levels == 0 || levels > 8 || self.channel_mult.contains(&0) {
            return refuse("channel_mult", "must have 1 to 8 positive entries".into());
        }
        let step = 1 << (levels - 1);
        if self.img_resolution == 0 || !self.img_resolution.is_multiple_of(step) {
            return refuse("img_resolution", format!("{} is not a multiple of {step}", self.img_resolution));
        }
        if !matches!(self.img_channels, 1 | 3) {
            return refuse("img_channels", format!("{} is neither 1 nor 3", self.img_channels));
        }
        if self.model_channels == 0 || !self.model_channels.is_multiple_of(4) {
            return refuse("model_channels", format!("{} is not a positive multiple of 4", self.model_channels));
        }
        if self.num_blocks == 0 || self.channel_mult_noise == 0 || self.channel_mult_emb == 0 {
            return refuse("num_blocks, channel_mult_noise and channel_mult_emb", "must be positive".into());
        }
        let taps = self.resample_filter.len();
        if taps == 0 || taps % 2 == 1 || self.resample_filter.iter().sum::<f32>() == 0.0 {
            return refuse("resample_filter", "must have an even number of taps whose sum is not zero".into());
        }
        Ok(())
    }
}

fn xavier(gain: f64) -> Weight {
    Weight::new(Draw::Xavier(gain))
}

/// Groups of a GroupNorm: at most 32, of at least 4 channels.
fn groups(channels: usize) -> usize {
    (channels / 4).min(32)
}

/// A residual block, by what is special about it.
struct Block<'a> {
    name: &'a str,
    c_out: usize,
    /// Rows of its output.
    res: usize,
    resample: Option<Resample>,
    /// The blocks that share a channel budget with it; a block without has no pipes.
    group: Option<&'a str>,
    attention: bool,
}

/// The forward pass.
fn build(config: &Config) -> Program {
    let (side, levels) = (config.img_resolution, config.channel_mult.len());
    let mut builder = Builder::new(config.image(), config.label_dim, config.pipe_widths.clone());
    let b = &mut builder;
    let emb = embed(b, config);
    let filter: Arc<[f32]> = config.resample_filter.as_slice().into();
    let pad = (filter.len() - 1) / 2;
    let resample = |direction, pad| Some(Resample { direction, filter: filter.clone(), pad });
    let has_attention = |res| config.attn_resolutions.contains(&res);

    let mut x = b.image();
    let mut aux = x;
    let mut skips = Vec::new();
    for level in 0..levels {
        let res = side >> level;
        if level == 0 {
            let (from, to) = (Channels::Fixed(config.img_channels), Channels::Fixed(config.model_channels));
            let conv = b.conv(&format!("enc.{res}x{res}_conv"), 3, from, to, xavier(1.0).at(res * res));
            x = b.product(Product::new(x, conv, 3));
        } else {
            let (name, c_out) = (format!("enc.{res}x{res}_down"), b.stream(&[x]));
            let down = resample(Direction::Down, pad);
            x = residual(
                b,
                emb,
                &[x],
                &Block { name: &name, c_out, res, resample: down, group: None, attention: false },
            );
            if config.encoder_type == Encoder::Residual {
                // EDM's fused form: the convolution goes first and leaves the border that the filter will consume.
                let name = format!("enc.{res}x{res}_aux_residual");
                let (from, wide) = (b.stream(&[aux]), 2 * res + filter.len() - 2);
                let weight = xavier(1.0).at(wide * wide);
                let conv = b.conv(&name, 3, Channels::Fixed(from), Channels::Fixed(c_out), weight);
                let wide = b.product(Product { pad: 1 + pad, ..Product::new(aux, conv, 3) });
                let small = View::from(wide).resampled(resample(Direction::Down, 0));
                x = b.write(format!("{name}.down"), small, Some(x), SKIP_SCALE);
                aux = x;
            }
        }
        skips.push(x);
        let (group, c_out) = (format!("enc_{res}x{res}"), config.model_channels * config.channel_mult[level]);
        for index in 0..config.num_blocks {
            let (name, attention) = (format!("enc.{res}x{res}_block{index}"), has_attention(res));
            let block = Block { name: &name, c_out, res, resample: None, group: Some(&group), attention };
            x = residual(b, emb, &[x], &block);
            skips.push(x);
        }
    }
    for level in (0..levels).rev() {
        let res = side >> level;
        let c_out = b.stream(&[x]);
        if level + 1 == levels {
            let group = format!("mid_{res}x{res}");
            for (index, attention) in [true, false].into_iter().enumerate() {
                let name = format!("dec.{res}x{res}_in{index}");
                let block = Block { name: &name, c_out, res, resample: None, group: Some(&group), attention };
                x = residual(b, emb, &[x], &block);
            }
        } else {
            let (name, up) = (format!("dec.{res}x{res}_up"), resample(Direction::Up, pad));
            x = residual(b, emb, &[x], &Block { name: &name, c_out, res, resample: up, group: None, attention: false });
        }
        let (group, c_out) = (format!("dec_{res}x{res}"), config.model_channels * config.channel_mult[level]);
        for index in 0..=config.num_blocks {
            let name = format!("dec.{res}x{res}_block{index}");
            let attention = index == config.num_blocks && has_attention(res);
            let skip = skips.pop().expect("as many skips as decoder blocks");
            let block = Block { name: &name, c_out, res, resample: None, group: Some(&group), attention };
            x = residual(b, emb, &[x, skip], &block);
        }
    }
    let c_in = b.stream(&[x]);
    let norm = b.group_norm(&format!("dec.{side}x{side}_aux_norm"), c_in, groups(c_in), EPS);
    let (from, to) = (Channels::Fixed(c_in), Channels::Fixed(config.img_channels));
    let conv = b.conv(&format!("dec.{side}x{side}_aux_conv"), 3, from, to, xavier(1e-5).at(side * side));
    b.product(Product::new(View::from(x).norm(norm).silu(), conv, 3));
    builder.build()
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
        let layer = b.linear("map_label", Channels::Fixed(config.label_dim), Channels::Fixed(noise), xavier(1.0));
        // EDM scales one-hot rows by the root of their length.
        ClassRows { weight: layer.weight, bias: layer.bias, scale: (config.label_dim as f32).sqrt() }
    });
    if config.augment_dim > 0 {
        let shape = [config.augment_dim, noise];
        b.buffer("map_augment.weight", &shape, Public(vec![vec![1], vec![0]]), Init::Constant(0.0));
    }
    // EDM computes cosines first, then swaps the halves.
    let waves = Some(Waves { frequencies, cosines_first: false });
    let mut emb = b.embedding("embedding", Embedding { waves, class }, noise);
    for (index, from) in [noise, channels].into_iter().enumerate() {
        let (from, to) = (Channels::Fixed(from), Channels::Fixed(channels));
        let layer = b.linear(&format!("map_layer{index}"), from, to, xavier(1.0));
        emb = b.product(Product { act: Some(Act::Silu), ..Product::new(emb, layer, 1) });
    }
    b.branches(emb);
    channels
}

/// A residual block on these values side by side, with the embedding of `emb` channels.
fn residual(b: &mut Builder, emb: usize, parts: &[ValueId], block: &Block) -> ValueId {
    let Block { name, c_out, res, ref resample, group, attention } = *block;
    let n = |part: &str| format!("{name}.{part}");
    let weight = |gain| xavier(gain).at(res * res);
    let (c_in, out) = (b.stream(parts), Channels::Fixed(c_out));
    let pipe = group.map(|group| b.pipe(Pipe { norm_groups: Some(groups(c_out)), ..pipe(name, PipeKind::Conv, c_out, group) }));
    let inner = pipe.map_or(out, Channels::of);
    let norm0 = b.group_norm(&n("norm0"), c_in, groups(c_in), EPS);
    let conv0 = b.conv(&n("conv0"), 3, Channels::Fixed(c_in), inner, weight(1.0));
    let affine = b.affine(&n("affine"), emb, inner, Draw::Xavier(1.0));
    let norm1 = match pipe {
        Some(pipe) => b.pipe_norm(&n("norm1"), pipe, EPS),
        None => b.group_norm(&n("norm1"), c_out, groups(c_out), EPS),
    };
    let conv1 = b.conv(&n("conv1"), 3, inner, out, weight(1e-5));
    let skip =
        (c_in != c_out || resample.is_some()).then(|| b.conv(&n("skip"), 1, Channels::Fixed(c_in), out, weight(1.0)));

    // conv0's output is only ever seen with the embedding added: one bias a sample holds both.
    let sample_bias = Some(b.branch(affine, 1, conv0.bias));
    let x = View::of(parts).norm(norm0).silu().resampled(resample.clone());
    let hidden = b.product(Product { bias: vec![], sample_bias, ..Product::new(x, conv0, 3) });
    let residual = match (skip, resample) {
        (None, _) if parts.len() == 1 => parts[0],
        // Without a convolution the parts have the channels of the output together.
        (None, _) => b.write(n("concat"), View::of(parts), None, 1.0),
        // A 1x1 convolution commutes with the filter: it goes where the map is small.
        (Some(conv), Some(Resample { direction: Direction::Up, .. })) => {
            let small = b.product(Product { bias: vec![], ..Product::new(View::of(parts), conv, 1) });
            b.write(n("skip.up"), View::from(small).resampled(resample.clone()), None, 1.0)
        }
        (Some(conv), _) => {
            let x = View::of(parts).resampled(resample.clone());
            b.product(Product { bias: vec![], ..Product::new(x, conv, 1) })
        }
    };
    let x = View::from(hidden).norm(norm1).silu();
    // Its bias and the skip's are only ever seen together.
    let bias = conv1.bias.into_iter().chain(skip.and_then(|skip| skip.bias)).collect();
    let (residual, scale) = (Some(residual), SKIP_SCALE);
    let x = b.product(Product { bias, residual, scale, ..Product::new(x, conv1, 3) });
    match group {
        Some(group) if attention => self_attention(b, x, block, group),
        _ => x,
    }
}

/// Attention between the pixels of `x`, which is added to it.
fn self_attention(b: &mut Builder, x: ValueId, block: &Block, group: &str) -> ValueId {
    let (name, c_out) = (block.name, block.c_out);
    // Scores, then the mixing of values.
    let macs = 2 * block.res.pow(4) * HEADS;
    let pipe = b.pipe(Pipe { width: c_out / HEADS, macs_per_channel: macs as u64, ..pipe(name, PipeKind::Attn, c_out, group) });
    let weight = |gain| xavier(gain).at(block.res * block.res);
    let heads = |parts| Channels::Heads { pipe, parts, heads: HEADS };
    let norm = b.group_norm(&format!("{name}.norm2"), c_out, groups(c_out), EPS);
    let qkv = b.conv(&format!("{name}.qkv"), 1, Channels::Fixed(c_out), heads(3), weight(0.2f64.sqrt()));
    let proj = b.conv(&format!("{name}.proj"), 1, heads(1), Channels::Fixed(c_out), weight(1e-5));
    let qkv = b.product(Product::new(View::from(x).norm(norm), qkv, 1));
    let mixed = b.attention(&format!("{name}.attn"), qkv);
    b.product(Product { residual: Some(x), scale: SKIP_SCALE, ..Product::new(mixed, proj, 1) })
}

/// A pipe of a block of so many outputs, as wide as these.
fn pipe(block: &str, kind: PipeKind, width: usize, group: &str) -> Pipe {
    Pipe {
        name: format!("{block}.{}", kind.as_str()),
        block: block.into(),
        kind,
        width,
        block_width: width,
        allocation_group: group.into(),
        norm_groups: None,
        macs_per_channel: 0,
    }
}

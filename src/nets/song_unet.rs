//! SongUNet: the DDPM++ and NCSN++ backbones of Karras et al. 2022 (after Song et al. 2021), as NVlabs/edm defines them.

use super::ImageShape;
use super::builder::{Builder, Weight};
use super::program::{Channels, Frequencies, NoiseEmbedding, Product, Program, Resample, ValueId, View};
use super::public::RESAMPLE_FILTER;
use crate::checkpoint::StateDict;
use crate::ops::cpu::resample::Direction;
use crate::supernet::spec::{Init, Pipe, PipeKind, PublicLayout};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
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
pub enum Embedding {
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
    pub embedding_type: Embedding,
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

/// How public files say it.
impl Config {
    /// The options that the class `SongUNet` of NVlabs/edm makes of these named arguments, with its defaults.
    ///
    /// # Errors
    /// What is missing or does not fit.
    pub fn of_arguments(arguments: &Map<String, Value>) -> std::result::Result<Self, String> {
        let mut json = json!({
            "model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16], "dropout": 0.1,
            "embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1],
        });
        for (name, value) in arguments {
            match name.as_str() {
                "in_channels" => json["img_channels"] = value.clone(),
                // Only training drops labels.
                "out_channels" | "label_dropout" => {}
                _ => json[name] = value.clone(),
            }
        }
        match (arguments.get("in_channels"), arguments.get("out_channels")) {
            (from, to) if from != to => Err("in_channels and out_channels are not the same".into()),
            _ => serde_json::from_value(json).map_err(|error| error.to_string()),
        }
    }

    /// The options that tensors of these names and shapes most likely follow from. Whether all the tensors are those of the
    /// network is to be checked; None where they are of something else.
    pub fn recognise(tensors: &StateDict) -> Option<Self> {
        const LARGEST: usize = 1 << 13;
        // The decoder of a DhariwalUNet ends otherwise.
        if tensors.shape("out_conv.weight").is_some() {
            return None;
        }
        let axis = |name: &str, axis: usize| tensors.shape(name).and_then(|shape| shape.get(axis).copied());
        let first = tensors.names().find_map(|name| name.strip_prefix("enc.")?.strip_suffix("_conv.weight"))?;
        let img_resolution: usize = first.split_once('x')?.0.parse().ok().filter(|&side| side <= LARGEST)?;
        let rows = |layer: String| axis(&format!("{layer}.weight"), 0).or_else(|| axis(&format!("{layer}.bias"), 0));
        let place = |level: usize| format!("enc.{0}x{0}", img_resolution >> level);
        let block = |level: usize, index: usize, part: &str| format!("{}_block{index}.{part}", place(level));
        let conv = format!("{}_conv.weight", place(0));
        let model_channels = axis(&conv, 0).filter(|&channels| channels > 0)?;
        // A subnet's conv0 may be narrower than its block.
        let channels = (0..).map_while(|level| rows(block(level, 0, "conv1")).filter(|_| img_resolution >> level > 0));
        let channel_mult: Vec<usize> = channels.map(|channels| channels / model_channels).collect();
        let levels = channel_mult.len();
        let attended = (0..levels).filter(|&level| rows(block(level, 0, "qkv")).is_some());
        let (channels_emb, channels_noise) = (axis("map_layer0.weight", 0)?, axis("map_layer0.weight", 1)?);
        let has_aux =
            (1..levels).any(|level| tensors.shape(&format!("{}_aux_residual.weight", place(level))).is_some());
        let encoder_type = if has_aux { Encoder::Residual } else { Encoder::Standard };
        let published = match encoder_type {
            Encoder::Standard => vec![1.0, 1.0],
            Encoder::Residual => vec![1.0, 3.0, 3.0, 1.0],
        };
        let buffer = tensors.names().find(|name| name.ends_with(RESAMPLE_FILTER));
        Some(Self {
            img_resolution,
            img_channels: axis(&conv, 1)?,
            label_dim: axis("map_label.weight", 1).unwrap_or(0),
            model_channels,
            num_blocks: (0..).take_while(|&index| rows(block(0, index, "conv1")).is_some()).count(),
            attn_resolutions: attended.map(|level| img_resolution >> level).collect(),
            channel_mult,
            dropout: 0.0,
            augment_dim: axis("map_augment.weight", 1).unwrap_or(0),
            embedding_type: match tensors.shape("map_noise.freqs") {
                Some(_) => Embedding::Fourier,
                None => Embedding::Positional,
            },
            encoder_type,
            decoder_type: Decoder::Standard,
            channel_mult_noise: channels_noise / model_channels,
            channel_mult_emb: channels_emb / model_channels,
            resample_filter: buffer.and_then(|name| filter(tensors, name)).unwrap_or(published),
            pipe_widths: BTreeMap::new(),
        })
    }

    /// Refuses `resample_filter` buffers of another filter than that of the options.
    ///
    /// # Errors
    /// [`Error::Input`] with the file and the buffer.
    pub fn check_filters(&self, tensors: &StateDict) -> Result<()> {
        let sum: f32 = self.resample_filter.iter().sum();
        let wanted: Vec<f32> = self.resample_filter.iter().map(|tap| tap / sum).collect();
        for name in tensors.names().filter(|name| name.ends_with(RESAMPLE_FILTER)) {
            let taps = filter(tensors, name).unwrap_or_default();
            let sum: f32 = taps.iter().sum();
            let is_near = |(tap, wanted): (&f32, &f32)| (tap / sum - wanted).abs() < 1e-3;
            if taps.len() != wanted.len() || !taps.iter().zip(&wanted).all(is_near) {
                let problem = format!("is not the filter of resample_filter = {:?}", self.resample_filter);
                return Err(Error::field(tensors.path(), &format!("{}{name}", tensors.prefix()), problem));
            }
        }
        Ok(())
    }
}

/// The 1-D filter f of a buffer `f f^T / (sum f)^2`: its rows' sums, scaled so that the first is 1, as published filters are.
fn filter(tensors: &StateDict, name: &str) -> Option<Vec<f32>> {
    let [.., taps] = *tensors.shape(name)? else { return None };
    let values = tensors.values([name]).ok()?.pop()?;
    let sums: Vec<f32> = values.chunks_exact(taps).map(|row| row.iter().sum()).collect();
    let rounded = |sum: &f32| {
        let tap = sum / sums[0];
        if (tap - tap.round()).abs() < 1e-3 { tap.round() } else { tap }
    };
    Some(sums.iter().map(rounded).collect())
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
            let conv = b.conv(&format!("enc.{res}x{res}_conv"), 3, from, to, Weight { gain: 1.0, uses: res * res });
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
                let weight = Weight { gain: 1.0, uses: wide * wide };
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
    let conv = b.conv(&format!("dec.{side}x{side}_aux_conv"), 3, from, to, Weight { gain: 1e-5, uses: side * side });
    b.product(Product::new(View::from(x).norm(norm).silu(), conv, 3));
    builder.build()
}

/// The embedding that every block sees, and the layer of what they make of it; its channels.
fn embed(b: &mut Builder, config: &Config) -> usize {
    let (noise, channels) =
        (config.model_channels * config.channel_mult_noise, config.model_channels * config.channel_mult_emb);
    let half = noise / 2;
    let frequencies = match config.embedding_type {
        Embedding::Positional => {
            // endpoint = True: the last frequency is 1 / 10000 exactly.
            let exponent = |i: usize| i as f32 / (half - 1).max(1) as f32;
            Frequencies::Fixed((0..half).map(|i| (1.0f32 / 10000.0).powf(exponent(i))).collect())
        }
        Embedding::Fourier => {
            Frequencies::Param(b.buffer("map_noise.freqs", &[half], PublicLayout::Vector, Init::Normal(16.0)))
        }
    };
    let class = (config.label_dim > 0).then(|| b.linear("map_label", config.label_dim, Channels::Fixed(noise)));
    if config.augment_dim > 0 {
        let shape = [config.augment_dim, noise];
        b.buffer("map_augment.weight", &shape, PublicLayout::Linear, Init::Constant(0.0));
    }
    let mut emb = b.embedding(NoiseEmbedding { frequencies, class }, noise);
    for (index, from) in [noise, channels].into_iter().enumerate() {
        let layer = b.linear(&format!("map_layer{index}"), from, Channels::Fixed(channels));
        emb = b.product(Product { silu: true, ..Product::new(emb, layer, 1) });
    }
    b.branches(emb);
    channels
}

/// A residual block on these values side by side, with the embedding of `emb` channels.
fn residual(b: &mut Builder, emb: usize, parts: &[ValueId], block: &Block) -> ValueId {
    let Block { name, c_out, res, ref resample, group, attention } = *block;
    let n = |part: &str| format!("{name}.{part}");
    let weight = |gain| Weight { gain, uses: res * res };
    let (c_in, out) = (b.stream(parts), Channels::Fixed(c_out));
    let pipe = group.map(|group| b.pipe(pipe(name, PipeKind::Conv, c_out, group, Some(groups(c_out)), 0)));
    let inner = pipe.map_or(out, Channels::Pipe);
    let norm0 = b.group_norm(&n("norm0"), c_in, groups(c_in), EPS);
    let conv0 = b.conv(&n("conv0"), 3, Channels::Fixed(c_in), inner, weight(1.0));
    let affine = b.linear(&n("affine"), emb, inner);
    let norm1 = match pipe {
        Some(pipe) => b.pipe_norm(&n("norm1"), pipe, EPS),
        None => b.group_norm(&n("norm1"), c_out, groups(c_out), EPS),
    };
    let conv1 = b.conv(&n("conv1"), 3, inner, out, weight(1e-5));
    let skip =
        (c_in != c_out || resample.is_some()).then(|| b.conv(&n("skip"), 1, Channels::Fixed(c_in), out, weight(1.0)));

    // conv0's output is only ever seen with the embedding added: one bias a sample holds both.
    let sample_bias = Some(b.branch(affine, conv0.bias));
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
    let bias = [conv1.bias].into_iter().chain(skip.map(|skip| skip.bias)).collect();
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
    let pipe = b.pipe(pipe(name, PipeKind::Attn, c_out / HEADS, group, None, macs));
    let weight = |gain| Weight { gain, uses: block.res * block.res };
    let heads = |parts| Channels::Heads { pipe, parts, heads: HEADS };
    let norm = b.group_norm(&format!("{name}.norm2"), c_out, groups(c_out), EPS);
    let qkv = b.conv(&format!("{name}.qkv"), 1, Channels::Fixed(c_out), heads(3), weight(0.2f64.sqrt()));
    let proj = b.conv(&format!("{name}.proj"), 1, heads(1), Channels::Fixed(c_out), weight(1e-5));
    let qkv = b.product(Product::new(View::from(x).norm(norm), qkv, 1));
    let mixed = b.attention(&format!("{name}.attn"), qkv);
    b.product(Product { residual: Some(x), scale: SKIP_SCALE, ..Product::new(mixed, proj, 1) })
}

fn pipe(
    block: &str,
    kind: PipeKind,
    width: usize,
    group: &str,
    norm_groups: Option<usize>,
    macs_per_channel: usize,
) -> Pipe {
    Pipe {
        name: format!("{block}.{}", kind.as_str()),
        block: block.into(),
        kind,
        width,
        allocation_group: group.into(),
        norm_groups,
        macs_per_channel: macs_per_channel as u64,
    }
}

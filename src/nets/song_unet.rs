//! SongUNet: the DDPM++ and NCSN++ backbones of Karras et al. 2022 (after Song et al. 2021), as NVlabs/edm defines them.

pub mod compiled;
pub mod packed;

use super::sliced::Sliced;
use crate::ops::cpu::group_norm::GroupTable;
use crate::ops::{Tape, attention, conv, elementwise, group_norm, resample};
use crate::supernet::spec::{Init, Param, Pipe, PipeKind, PublicLayout, Role, Slice, Spec};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::f32::consts::{PI, SQRT_2};
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
    /// The resolution of each level, from the image's down.
    pub fn levels(&self) -> Vec<usize> {
        (0..self.channel_mult.len()).map(|level| self.img_resolution >> level).collect()
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

/// Groups of a GroupNorm: at most 32, of at least 4 channels.
fn groups(channels: usize) -> usize {
    (channels / 4).min(32)
}

/// The network: what is computed, over parameters that live in a [`Sliced`].
#[derive(Debug)]
pub struct SongUnet {
    config: Config,
    spec: Spec,
    frequencies: Frequencies,
    map_label: Option<Affine>,
    map_layers: [Affine; 2],
    encoder: Vec<Layer>,
    decoder: Vec<Block>,
    out_norm: Norm,
    out_conv: Affine,
}

#[derive(Debug)]
enum Frequencies {
    Positional(Vec<f32>),
    Fourier(usize),
}

/// Indices of a weight and a bias in [`Spec::params`].
#[derive(Clone, Copy, Debug)]
struct Affine {
    weight: usize,
    bias: usize,
}

#[derive(Debug)]
struct Norm {
    affine: Affine,
    table: Table,
}

#[derive(Clone, Debug)]
enum Table {
    /// The channels of the residual stream: never sliced.
    Fixed(Arc<GroupTable>),
    /// The channels of a pipe: the table depends on the subnet.
    Pipe(usize),
}

#[derive(Debug)]
enum Layer {
    Conv(Affine),
    Block(Box<Block>),
    AuxResidual(Affine),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Resampling {
    Keep,
    Down,
    Up,
}

#[derive(Debug)]
struct Block {
    in_channels: usize,
    resampling: Resampling,
    norm0: Norm,
    conv0: Affine,
    affine: Affine,
    norm1: Norm,
    conv1: Affine,
    skip: Option<Affine>,
    attention: Option<Attention>,
}

#[derive(Debug)]
struct Attention {
    pipe: usize,
    norm: Norm,
    qkv: Affine,
    proj: Affine,
}

impl SongUnet {
    /// Lays the network out.
    ///
    /// # Errors
    /// [`Error::Input`] with the field of `config` that does not fit.
    pub fn new(config: Config) -> Result<Self> {
        config.check()?;
        if !config.pipe_widths.is_empty() {
            let whole = Self::new(Config { pipe_widths: BTreeMap::new(), ..config.clone() })?;
            whole.check_pipe_widths(&config.pipe_widths)?;
        }
        let net = Builder::new(&config).build(config);
        // A pipe's norm takes as many groups as divide its width.
        let norms = net.spec.params.iter().filter(|param| param.init == Init::Constant(1.0) && param.slices.is_empty());
        for channels in norms.map(|norm| norm.shape[0]) {
            if !channels.is_multiple_of(groups(channels)) {
                let problem =
                    format!("{channels} channels do not divide into the {} groups of GroupNorm", groups(channels));
                return Err(Error::input("model_channels", problem));
            }
        }
        Ok(net)
    }

    /// Whether a network that is this one otherwise can have pipes of these widths.
    fn check_pipe_widths(&self, widths: &BTreeMap<String, usize>) -> Result<()> {
        for (name, &width) in widths {
            let place = format!("pipe_widths.{name}");
            match self.spec.pipes.iter().find(|pipe| pipe.name == *name) {
                None => return Err(Error::input(place, "the network has no such pipe")),
                Some(pipe) if !(1..=pipe.width).contains(&width) => {
                    return Err(Error::input(place, format!("{width} is not a width from 1 to {}", pipe.width)));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The network as a table.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its options.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The full-width shape of a parameter.
    fn shape(&self, param: usize) -> &[usize] {
        &self.spec.params[param].shape
    }

    /// The name of a layer, given its weight.
    fn layer_name(&self, weight: usize) -> String {
        self.spec.params[weight].name.trim_end_matches(".weight").to_owned()
    }

    /// The raw network F: `x` is `[B, H, W, C]`, `noise` has B entries (c_noise), `labels` is `[B, label_dim]` (one-hot
    /// rows, or zeros for the unconditional call) and is ignored by an unconditional network.
    pub fn forward(
        &self,
        tape: &Tape,
        w: &Sliced,
        x: &Tensor,
        noise: &[f32],
        labels: Option<&Tensor>,
    ) -> Result<Tensor> {
        let emb = self.embed(tape, w, noise, labels)?;
        let mut x = x.clone();
        let mut skips: Vec<Tensor> = Vec::new();
        let mut aux = x.clone();
        for layer in &self.encoder {
            match layer {
                Layer::Conv(conv) => x = conv.apply(tape, w, &x, 1)?,
                Layer::Block(block) => x = self.block(tape, w, block, &x, &emb)?,
                Layer::AuxResidual(conv) => {
                    // The convolution goes first and leaves the border that the filter will consume (EDM's fused form).
                    let filter = &self.config.resample_filter;
                    let wide = conv.apply(tape, w, &aux, 1 + (filter.len() - 1) / 2)?;
                    let residual = resample::down(tape, &wide, filter, 0)?;
                    x = elementwise::add_scale(tape, &x, &residual, SKIP_SCALE)?;
                    aux = x.clone();
                    skips.pop();
                }
            }
            skips.push(x.clone());
        }
        for block in &self.decoder {
            if x.dim(3)? != block.in_channels {
                let skip = skips.pop().expect("the decoder has a block for each skip");
                x = elementwise::concat(tape, &x, &skip)?;
            }
            x = self.block(tape, w, block, &x, &emb)?;
        }
        let x = self.norm(tape, w, &self.out_norm, &x, true)?;
        self.out_conv.apply(tape, w, &x, 1)
    }

    /// The embedding that every block sees: `[B, emb_channels]`.
    fn embed(&self, tape: &Tape, w: &Sliced, noise: &[f32], labels: Option<&Tensor>) -> Result<Tensor> {
        let frequencies = match &self.frequencies {
            Frequencies::Positional(frequencies) => frequencies.clone(),
            Frequencies::Fourier(param) => {
                w.at(*param).to_vec1::<f32>()?.into_iter().map(|frequency| 2.0 * PI * frequency).collect()
            }
        };
        // Sines before cosines: EDM computes them the other way round, then swaps the halves.
        let mut values = Vec::with_capacity(noise.len() * frequencies.len() * 2);
        for &noise in noise {
            values.extend(frequencies.iter().map(|frequency| (noise * frequency).sin()));
            values.extend(frequencies.iter().map(|frequency| (noise * frequency).cos()));
        }
        let mut emb = Tensor::from_vec(values, (noise.len(), frequencies.len() * 2), &Device::Cpu)?;
        if let (Some(map), Some(labels)) = (&self.map_label, labels) {
            let scaled = (labels * (self.config.label_dim as f64).sqrt())?;
            let mapped = conv::linear(tape, &scaled, w.at(map.weight), w.at(map.bias))?;
            emb = elementwise::add_scale(tape, &emb, &mapped, 1.0)?;
        }
        for layer in &self.map_layers {
            emb = conv::linear(tape, &emb, w.at(layer.weight), w.at(layer.bias))?;
            emb = elementwise::silu(tape, &emb)?;
        }
        Ok(emb)
    }

    fn block(&self, tape: &Tape, w: &Sliced, block: &Block, x: &Tensor, emb: &Tensor) -> Result<Tensor> {
        let hidden = self.norm(tape, w, &block.norm0, x, true)?;
        let hidden = self.resample(tape, &hidden, block.resampling)?;
        // conv0's output is only ever seen with the embedding added: one bias a sample holds both.
        let bias = elementwise::add_scale(tape, w.at(block.conv0.bias), w.at(block.affine.bias), 1.0)?;
        let bias = conv::linear(tape, emb, w.at(block.affine.weight), &bias)?;
        let hidden = conv::conv2d(tape, &hidden, w.at(block.conv0.weight), &bias, 1)?;
        let hidden = self.norm(tape, w, &block.norm1, &hidden, true)?;
        let hidden = block.conv1.apply(tape, w, &hidden, 1)?;
        let skip = match &block.skip {
            None => x.clone(),
            Some(skip) => skip.apply(tape, w, &self.resample(tape, x, block.resampling)?, 0)?,
        };
        let x = elementwise::add_scale(tape, &hidden, &skip, SKIP_SCALE)?;
        let Some(attention) = &block.attention else { return Ok(x) };
        let hidden = self.norm(tape, w, &attention.norm, &x, false)?;
        let channels = hidden.dim(3)?;
        let (weight, bias) = (w.at(attention.qkv.weight), w.at(attention.qkv.bias));
        let weight = tape.reshape(weight, (1, 1, channels, bias.elem_count()))?;
        let bias = tape.reshape(bias, bias.elem_count())?;
        let qkv = conv::conv2d(tape, &hidden, &weight, &bias, 0)?;
        let hidden = attention::attention(tape, &qkv, HEADS)?;
        let weight = w.at(attention.proj.weight);
        let weight = tape.reshape(weight, (1, 1, hidden.dim(3)?, channels))?;
        let hidden = conv::conv2d(tape, &hidden, &weight, w.at(attention.proj.bias), 0)?;
        Ok(elementwise::add_scale(tape, &hidden, &x, SKIP_SCALE)?)
    }

    fn norm(&self, tape: &Tape, w: &Sliced, norm: &Norm, x: &Tensor, silu: bool) -> Result<Tensor> {
        let table = match &norm.table {
            Table::Fixed(table) => table,
            Table::Pipe(pipe) => w.table(*pipe),
        };
        Ok(group_norm::group_norm(tape, x, w.at(norm.affine.weight), w.at(norm.affine.bias), table, EPS, silu)?)
    }

    fn resample(&self, tape: &Tape, x: &Tensor, resampling: Resampling) -> Result<Tensor> {
        let filter = &self.config.resample_filter;
        let pad = (filter.len() - 1) / 2;
        Ok(match resampling {
            Resampling::Keep => x.clone(),
            Resampling::Down => resample::down(tape, x, filter, pad)?,
            Resampling::Up => resample::up(tape, x, filter, pad)?,
        })
    }
}

impl Affine {
    fn apply(&self, tape: &Tape, w: &Sliced, x: &Tensor, pad: usize) -> Result<Tensor> {
        Ok(conv::conv2d(tape, x, w.at(self.weight), w.at(self.bias), pad)?)
    }
}

/// Adds parameters and pipes to a [`Spec`] in forward order.
struct Builder {
    spec: Spec,
    emb_channels: usize,
    pipe_widths: BTreeMap<String, usize>,
}

impl Builder {
    fn new(config: &Config) -> Self {
        let emb_channels = config.model_channels * config.channel_mult_emb;
        Self { spec: Spec::default(), emb_channels, pipe_widths: config.pipe_widths.clone() }
    }

    fn build(mut self, config: Config) -> SongUnet {
        let channels = |level: usize| config.model_channels * config.channel_mult[level];
        let noise_channels = config.model_channels * config.channel_mult_noise;
        let frequencies = self.frequencies(&config, noise_channels);
        let map_label =
            (config.label_dim > 0).then(|| self.linear("map_label", config.label_dim, noise_channels, None));
        if config.augment_dim > 0 {
            self.unused("map_augment.weight", vec![config.augment_dim, noise_channels]);
        }
        let map_layers = [
            self.linear("map_layer0", noise_channels, self.emb_channels, None),
            self.linear("map_layer1", self.emb_channels, self.emb_channels, None),
        ];

        let mut encoder = Vec::new();
        let mut skips = Vec::new();
        let mut c_out = config.model_channels;
        let mut aux = config.img_channels;
        for level in 0..config.channel_mult.len() {
            let res = config.img_resolution >> level;
            if level == 0 {
                let conv = self.conv(&format!("enc.{res}x{res}_conv"), 3, aux, c_out, res, 1.0);
                encoder.push(Layer::Conv(conv));
            } else {
                let down = BlockShape { c_in: c_out, c_out, res, resampling: Resampling::Down, attention: false };
                let down = self.block(&format!("enc.{res}x{res}_down"), None, down);
                encoder.push(Layer::Block(Box::new(down)));
                if config.encoder_type == Encoder::Residual {
                    let name = format!("enc.{res}x{res}_aux_residual");
                    // The convolution runs before the resampling, one pixel larger than the finer level for each tap beyond two.
                    let wide = 2 * res + config.resample_filter.len() - 2;
                    encoder.push(Layer::AuxResidual(self.conv(&name, 3, aux, c_out, wide, 1.0)));
                    aux = c_out;
                }
            }
            skips.push(c_out);
            for index in 0..config.num_blocks {
                let c_in = c_out;
                c_out = channels(level);
                let attention = config.attn_resolutions.contains(&res);
                let shape = BlockShape { c_in, c_out, res, resampling: Resampling::Keep, attention };
                let group = format!("enc_{res}x{res}");
                encoder.push(Layer::Block(Box::new(self.block(
                    &format!("enc.{res}x{res}_block{index}"),
                    Some(&group),
                    shape,
                ))));
                skips.push(c_out);
            }
        }

        let mut decoder = Vec::new();
        for level in (0..config.channel_mult.len()).rev() {
            let res = config.img_resolution >> level;
            if level + 1 == config.channel_mult.len() {
                let shape = BlockShape { c_in: c_out, c_out, res, resampling: Resampling::Keep, attention: true };
                let group = format!("mid_{res}x{res}");
                decoder.push(self.block(&format!("dec.{res}x{res}_in0"), Some(&group), shape));
                let shape = BlockShape { attention: false, ..shape };
                decoder.push(self.block(&format!("dec.{res}x{res}_in1"), Some(&group), shape));
            } else {
                let up = BlockShape { c_in: c_out, c_out, res, resampling: Resampling::Up, attention: false };
                decoder.push(self.block(&format!("dec.{res}x{res}_up"), None, up));
            }
            for index in 0..=config.num_blocks {
                let c_in = c_out + skips.pop().expect("as many skips as decoder blocks");
                c_out = channels(level);
                let attention = index == config.num_blocks && config.attn_resolutions.contains(&res);
                let shape = BlockShape { c_in, c_out, res, resampling: Resampling::Keep, attention };
                let group = format!("dec_{res}x{res}");
                decoder.push(self.block(&format!("dec.{res}x{res}_block{index}"), Some(&group), shape));
            }
        }
        let res = config.img_resolution;
        let out_norm = self.norm(&format!("dec.{res}x{res}_aux_norm"), c_out, None);
        let out_conv = self.conv(&format!("dec.{res}x{res}_aux_conv"), 3, c_out, config.img_channels, res, 1e-5);
        let spec = self.spec;
        SongUnet { config, spec, frequencies, map_label, map_layers, encoder, decoder, out_norm, out_conv }
    }

    fn frequencies(&mut self, config: &Config, noise_channels: usize) -> Frequencies {
        let half = noise_channels / 2;
        match config.embedding_type {
            Embedding::Positional => {
                // endpoint = True: the last frequency is 1 / 10000 exactly.
                let exponent = |i: usize| i as f32 / (half - 1).max(1) as f32;
                Frequencies::Positional((0..half).map(|i| (1.0f32 / 10000.0).powf(exponent(i))).collect())
            }
            Embedding::Fourier => {
                let index = self.unused("map_noise.freqs", vec![half]);
                self.spec.params[index].public = PublicLayout::Vector;
                self.spec.params[index].init = Init::Normal(16.0);
                Frequencies::Fourier(index)
            }
        }
    }

    /// A parameter that no gradient reaches.
    fn unused(&mut self, name: &str, shape: Vec<usize>) -> usize {
        let index = self.push(name.into(), shape, vec![], PublicLayout::Linear, Init::Constant(0.0), 0);
        self.spec.params[index].trainable = false;
        index
    }

    fn push(
        &mut self,
        name: String,
        shape: Vec<usize>,
        slices: Vec<Slice>,
        public: PublicLayout,
        init: Init,
        uses: usize,
    ) -> usize {
        self.spec.params.push(Param { name, shape, slices, public, init, uses: uses as u64, trainable: true });
        self.spec.params.len() - 1
    }

    /// A pipe that is `whole` wide unless the network is an extracted subnet.
    fn pipe(&mut self, block: &str, group: &str, kind: PipeKind, whole: usize, res: usize) -> usize {
        let (norm_groups, products) = match kind {
            PipeKind::Attn => (None, 2 * res.pow(4) * HEADS),
            _ => (Some(groups(whole)), 0),
        };
        let name = format!("{block}.{}", kind.as_str());
        let width = self.pipe_widths.get(&name).copied().unwrap_or(whole);
        self.spec.pipes.push(Pipe {
            name,
            block: block.into(),
            kind,
            width,
            allocation_group: group.into(),
            norm_groups,
            macs_per_channel: products as u64,
        });
        self.spec.pipes.len() - 1
    }

    fn vector(&mut self, name: String, len: usize, value: f32, pipe: Option<usize>) -> usize {
        let slices = follows(pipe, 0);
        self.push(name, vec![len], slices, PublicLayout::Vector, Init::Constant(value), 0)
    }

    fn norm(&mut self, name: &str, channels: usize, pipe: Option<usize>) -> Norm {
        let weight = self.vector(format!("{name}.weight"), channels, 1.0, pipe);
        let bias = self.vector(format!("{name}.bias"), channels, 0.0, pipe);
        let table = match pipe {
            Some(pipe) => Table::Pipe(pipe),
            None => {
                let share = channels / groups(channels);
                Table::Fixed(Arc::new(GroupTable::new((0..channels).map(|channel| (channel / share) as u32).collect())))
            }
        };
        Norm { affine: Affine { weight, bias }, table }
    }

    /// A linear layer whose outputs follow `pipe`.
    fn linear(&mut self, name: &str, c_in: usize, c_out: usize, pipe: Option<usize>) -> Affine {
        let init = Init::Xavier { fan_in: c_in, fan_out: c_out, gain: 1.0 };
        let slices = follows(pipe, 1);
        let weight = self.push(format!("{name}.weight"), vec![c_in, c_out], slices, PublicLayout::Linear, init, 1);
        let bias = self.vector(format!("{name}.bias"), c_out, 0.0, pipe);
        Affine { weight, bias }
    }

    fn conv(&mut self, name: &str, kernel: usize, c_in: usize, c_out: usize, res: usize, gain: f64) -> Affine {
        self.piped_conv(name, kernel, c_in, c_out, res, gain, None, None)
    }

    #[expect(clippy::too_many_arguments, reason = "a convolution has these many properties, named at each call")]
    fn piped_conv(
        &mut self,
        name: &str,
        kernel: usize,
        c_in: usize,
        c_out: usize,
        res: usize,
        gain: f64,
        consumes: Option<usize>,
        produces: Option<usize>,
    ) -> Affine {
        let taps = kernel * kernel;
        let init = Init::Xavier { fan_in: c_in * taps, fan_out: c_out * taps, gain };
        let consumes = consumes.map(|pipe| Slice { axis: 2, pipe, role: Role::Consumes });
        let made = produces.map(|pipe| Slice { axis: 3, pipe, role: Role::Produces });
        let slices = consumes.into_iter().chain(made).collect();
        let shape = vec![kernel, kernel, c_in, c_out];
        let weight = self.push(format!("{name}.weight"), shape, slices, PublicLayout::Conv, init, res * res);
        let bias = self.vector(format!("{name}.bias"), c_out, 0.0, produces);
        Affine { weight, bias }
    }

    /// A residual block; it has pipes if it belongs to an allocation `group`.
    fn block(&mut self, name: &str, group: Option<&str>, shape: BlockShape) -> Block {
        let BlockShape { c_in, c_out, res, resampling, attention } = shape;
        let pipe = group.map(|group| self.pipe(name, group, PipeKind::Conv, c_out, res));
        let inner = pipe.map_or(c_out, |pipe| self.spec.pipes[pipe].width);
        let norm0 = self.norm(&format!("{name}.norm0"), c_in, None);
        let conv0 = self.piped_conv(&format!("{name}.conv0"), 3, c_in, inner, res, 1.0, None, pipe);
        let affine = self.linear(&format!("{name}.affine"), self.emb_channels, inner, pipe);
        let norm1 = self.norm(&format!("{name}.norm1"), inner, pipe);
        let conv1 = self.piped_conv(&format!("{name}.conv1"), 3, inner, c_out, res, 1e-5, pipe, None);
        let skip = (c_in != c_out || resampling != Resampling::Keep)
            .then(|| self.conv(&format!("{name}.skip"), 1, c_in, c_out, res, 1.0));
        let attention =
            attention.then(|| self.attention(name, group.expect("only whole blocks have attention"), c_out, res));
        Block { in_channels: c_in, resampling, norm0, conv0, affine, norm1, conv1, skip, attention }
    }

    fn attention(&mut self, name: &str, group: &str, channels: usize, res: usize) -> Attention {
        let pipe = self.pipe(name, group, PipeKind::Attn, channels / HEADS, res);
        let dim = self.spec.pipes[pipe].width;
        let norm = self.norm(&format!("{name}.norm2"), channels, None);
        let qkv = Affine {
            weight: self.push(
                format!("{name}.qkv.weight"),
                vec![channels, 3, HEADS, dim],
                vec![Slice { axis: 3, pipe, role: Role::Produces }],
                PublicLayout::Qkv,
                Init::Xavier { fan_in: channels, fan_out: 3 * channels, gain: 0.2f64.sqrt() },
                res * res,
            ),
            bias: self.push(
                format!("{name}.qkv.bias"),
                vec![3, HEADS, dim],
                follows(Some(pipe), 2),
                PublicLayout::QkvBias,
                Init::Constant(0.0),
                0,
            ),
        };
        let weight = self.push(
            format!("{name}.proj.weight"),
            vec![HEADS, dim, channels],
            vec![Slice { axis: 1, pipe, role: Role::Consumes }],
            PublicLayout::AttnOut,
            Init::Xavier { fan_in: channels, fan_out: channels, gain: 1e-5 },
            res * res,
        );
        let bias = self.vector(format!("{name}.proj.bias"), channels, 0.0, None);
        Attention { pipe, norm, qkv, proj: Affine { weight, bias } }
    }
}

fn follows(pipe: Option<usize>, axis: usize) -> Vec<Slice> {
    pipe.into_iter().map(|pipe| Slice { axis, pipe, role: Role::Follows }).collect()
}

#[derive(Clone, Copy)]
struct BlockShape {
    c_in: usize,
    c_out: usize,
    res: usize,
    resampling: Resampling,
    attention: bool,
}

//! SongUNet for inference: packed weights, and the forward pass in fused layers.
//!
//! It computes what [`SongUnet::forward`] computes, which is there for gradients and as the reference: the tests hold
//! one against the other.

use super::{Affine, Attention, Block, EPS, Frequencies, HEADS, Layer, Norm, Resampling, SKIP_SCALE, SongUnet, Table};
use crate::Result;
use crate::nets::sliced::Tables;
use crate::ops::cpu::activation::silu_in_place;
use crate::ops::cpu::fused::attention::{self, attention};
use crate::ops::cpu::fused::conv::{Conv, Finish, Method};
use crate::ops::cpu::fused::linear::{self, Linear, Output};
use crate::ops::cpu::fused::map::Buffer;
use crate::ops::cpu::fused::moments::Normalisation;
use crate::ops::cpu::fused::panels::{PANEL, floats, floats_mut, panels, pitch};
use crate::ops::cpu::fused::resample::{copy, resample};
use crate::ops::cpu::fused::{Kind, Map, Source, Workspace};
use crate::ops::cpu::group_norm::GroupTable;
use crate::ops::cpu::resample::{Direction, Resampler};
use crate::supernet::{Spec, Supernet, Widths};
use std::f32::consts::PI;
use std::fmt;

/// A subnet of a [`Packed`] network.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Kept channels of every pipe.
    pub widths: Widths,
    /// The groups of every pipe's norm.
    pub tables: Tables,
}

impl Cut {
    /// The subnet of these widths.
    pub fn new(spec: &Spec, supernet: &Supernet, widths: Widths) -> Self {
        Self { tables: Tables::new(spec, supernet, &widths), widths }
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.widths.0) + self.tables.bytes()
    }
}

/// The weights of a SongUNet as its layers want them, once for all subnets.
#[derive(Debug)]
pub struct Packed {
    frequencies: Vec<f32>,
    map_label: Option<Linear>,
    map_layers: [Linear; 2],
    noise_channels: usize,
    emb_channels: usize,
    encoder: Vec<PackedLayer>,
    decoder: Vec<PackedBlock>,
    out_norm: PackedNorm,
    out_conv: PackedConv,
    /// Elements of the biases of all blocks, for one sample.
    bias_pitch: usize,
}

#[derive(Debug)]
enum PackedLayer {
    Conv(PackedConv),
    Block(Box<PackedBlock>),
    AuxResidual { conv: PackedConv, pad: usize, down: Resampler },
}

/// A convolution's weights and its name in the spec.
#[derive(Debug)]
struct Kernel {
    name: String,
    conv: Conv,
}

#[derive(Debug)]
struct PackedConv {
    kernel: Kernel,
    bias: Vec<f32>,
    /// Outputs at full width.
    channels: usize,
}

#[derive(Debug)]
struct PackedNorm {
    name: String,
    scale: Vec<f32>,
    shift: Vec<f32>,
    table: Table,
}

#[derive(Debug)]
struct PackedBlock {
    name: String,
    in_channels: usize,
    out_channels: usize,
    /// The pipe between its convolutions, where it can shrink, and its full width.
    pipe: (Option<usize>, usize),
    norm0: PackedNorm,
    conv0: Kernel,
    /// From the embedding to the bias of `conv0`.
    affine: Linear,
    /// Where in the biases of all blocks its own begins.
    bias_offset: usize,
    norm1: PackedNorm,
    conv1: Kernel,
    /// Of `conv1` and `skip` together.
    bias: Vec<f32>,
    skip: Option<Kernel>,
    resampling: Option<Resample>,
    attention: Option<PackedAttention>,
}

#[derive(Debug)]
struct Resample {
    /// Of the block's input.
    input: Resampler,
    /// Of the skip's convolution, where that goes first: on the way up the map is small before.
    skip: Option<Resampler>,
}

#[derive(Debug)]
struct PackedAttention {
    /// That of its pipe.
    name: String,
    pipe: usize,
    norm: PackedNorm,
    qkv: PackedConv,
    proj: PackedConv,
}

impl Packed {
    /// Packs the weights of `net`.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] on a device fault.
    pub fn new(net: &SongUnet, supernet: &Supernet) -> Result<Self> {
        Ok(Packer { net, weights: supernet.values()?, bias_pitch: 0 }.pack())
    }

    /// Memory that the weights take.
    pub fn bytes(&self) -> usize {
        let blocks = self.encoder.iter().map(PackedLayer::bytes).chain(self.decoder.iter().map(PackedBlock::bytes));
        let maps = self.map_label.iter().chain(&self.map_layers).map(Linear::bytes);
        let rest = size_of_val(&*self.frequencies) + self.out_norm.bytes() + self.out_conv.bytes();
        blocks.sum::<usize>() + maps.sum::<usize>() + rest
    }

    /// The raw network F of the subnet `cut`: as [`SongUnet::forward`], with `labels` empty for an unconditional network.
    pub fn forward(&self, workspace: &mut Workspace, cut: &Cut, x: &Map, noise: &[f32], labels: &[f32]) -> Map {
        let biases = self.biases(workspace, cut, noise, labels);
        let mut run = Run { workspace, cut, biases: floats(&biases), bias_pitch: self.bias_pitch };
        let mut skips: Vec<Map> = Vec::new();
        // The image at the end of the side path, as an index into `skips`.
        let mut aux = None;
        for layer in &self.encoder {
            let made = match layer {
                PackedLayer::Conv(conv) => run.conv(conv, skips.last().unwrap_or(x), 1),
                PackedLayer::Block(block) => run.block(block, &[skips.last().expect("a convolution is first")]),
                PackedLayer::AuxResidual { conv, pad, down } => {
                    // The convolution goes first and leaves the border that the filter will consume (EDM's fused form).
                    let wide = run.conv(conv, aux.map_or(x, |index: usize| &skips[index]), *pad);
                    let main = skips.pop().expect("a block comes before");
                    aux = Some(skips.len());
                    run.aux_residual(&conv.kernel.name, down, wide, main)
                }
            };
            skips.push(made);
        }
        // The encoder's last map is where the decoder begins, and the first that it takes back.
        let mut h: Option<Map> = None;
        for block in &self.decoder {
            let input = h.as_ref().or(skips.last()).expect("the encoder has a layer");
            let made = if input.channels == block.in_channels {
                run.block(block, &[input])
            } else {
                let skip = skips.pop().expect("the decoder has a block for each skip");
                let made = run.block(block, &[h.as_ref().unwrap_or(&skip), &skip]);
                run.workspace.arena.put(skip);
                made
            };
            if let Some(done) = h.replace(made) {
                run.workspace.arena.put(done);
            }
        }
        let h = h.expect("the decoder has a block");
        let channels = self.out_conv.channels;
        let y = run.normed_conv(&self.out_norm, true, &self.out_conv, &h, [channels; 2]);
        workspace.arena.put(h);
        workspace.arena.put_lines(biases);
        y
    }

    /// The biases of the first convolutions of all blocks, which hold the embedding: `[batch, bias_pitch]`.
    fn biases(&self, workspace: &mut Workspace, cut: &Cut, noise: &[f32], labels: &[f32]) -> Buffer {
        let batch = noise.len();
        let noise_pitch = pitch(self.noise_channels);
        let mut emb = workspace.arena.lines(batch * panels(self.noise_channels));
        if let Some(map) = &self.map_label {
            let classes = labels.len() / batch;
            let output = Output { layer: map, channels: self.noise_channels, offset: 0 };
            linear::run(&mut workspace.team, labels, classes, &[output], floats_mut(&mut emb), noise_pitch);
            linear_ended(workspace, format_args!("map_label"), batch, classes, self.noise_channels);
        } else {
            floats_mut(&mut emb).fill(0.0);
        }
        for (emb, &noise) in floats_mut(&mut emb).chunks_exact_mut(noise_pitch).zip(noise) {
            // Sines before cosines: EDM computes them the other way round, then swaps the halves.
            let (sines, cosines) = emb.split_at_mut(self.frequencies.len());
            for ((sine, cosine), frequency) in sines.iter_mut().zip(cosines).zip(&self.frequencies) {
                *sine += (noise * frequency).sin();
                *cosine += (noise * frequency).cos();
            }
        }
        let emb_pitch = pitch(self.emb_channels);
        let (mut from, mut depth) = ((emb, noise_pitch), self.noise_channels);
        for (index, layer) in self.map_layers.iter().enumerate() {
            let mut to = workspace.arena.lines(batch * panels(self.emb_channels));
            let output = Output { layer, channels: self.emb_channels, offset: 0 };
            linear::run(&mut workspace.team, floats(&from.0), from.1, &[output], floats_mut(&mut to), emb_pitch);
            silu_in_place(floats_mut(&mut to));
            workspace.arena.put_lines(std::mem::replace(&mut from, (to, emb_pitch)).0);
            linear_ended(workspace, format_args!("map_layer{index}"), batch, depth, self.emb_channels);
            depth = self.emb_channels;
        }
        let mut biases = workspace.arena.lines(batch * self.bias_pitch / PANEL);
        let outputs: Vec<Output> = self
            .blocks()
            .map(|block| Output { layer: &block.affine, channels: block.inner(cut), offset: block.bias_offset })
            .collect();
        linear::run(&mut workspace.team, floats(&from.0), from.1, &outputs, floats_mut(&mut biases), self.bias_pitch);
        let channels = outputs.iter().map(|output| output.channels).sum();
        linear_ended(workspace, format_args!("affine of all blocks"), batch, depth, channels);
        workspace.arena.put_lines(from.0);
        biases
    }

    fn blocks(&self) -> impl Iterator<Item = &PackedBlock> {
        let encoder = self.encoder.iter().filter_map(|layer| match layer {
            PackedLayer::Block(block) => Some(&**block),
            _ => None,
        });
        encoder.chain(&self.decoder)
    }
}

/// Ends linear layers of so many inputs and outputs on one vector a sample.
fn linear_ended(workspace: &mut Workspace, name: fmt::Arguments, batch: usize, c_in: usize, c_out: usize) {
    workspace.ended(name, Kind::Linear, [1, 1, c_in, c_out], (batch * c_in * c_out) as u64);
}

/// One forward pass under way.
struct Run<'a> {
    workspace: &'a mut Workspace,
    cut: &'a Cut,
    biases: &'a [f32],
    bias_pitch: usize,
}

impl Run<'_> {
    /// `y = finish(source * kernel)`, whose first `channels` channels are what it is for.
    fn convolve(&mut self, kernel: &Kernel, source: Source, finish: &Finish, y: &mut Map, channels: usize) {
        let c_in = source.channels();
        kernel.conv.run(self.workspace, source, finish, y);
        let macs = kernel.conv.macs(c_in, y.batch * y.height * y.width * channels);
        let shape = [y.height, y.width, c_in, channels];
        self.workspace.ended(format_args!("{}", kernel.name), kernel.conv.kind(), shape, macs);
    }

    /// Ends a layer without products, which has made `y` of as many channels.
    fn ended(&mut self, name: fmt::Arguments, kind: Kind, y: &Map) {
        self.workspace.ended(name, kind, [y.height, y.width, y.channels, y.channels], 0);
    }

    fn conv(&mut self, conv: &PackedConv, x: &Map, pad: usize) -> Map {
        let grow = |side: usize| side + 2 * pad - 2;
        let mut y = self.workspace.arena.map([x.batch, grow(x.height), grow(x.width), conv.channels]);
        let source = Source { parts: &[x], affine: None };
        self.convolve(&conv.kernel, source, &Finish::bias(&conv.bias), &mut y, conv.channels);
        y
    }

    /// A map of `channels`, of which `meant` are what it is for.
    fn normed_conv(
        &mut self,
        norm: &PackedNorm,
        silu: bool,
        conv: &PackedConv,
        x: &Map,
        [channels, meant]: [usize; 2],
    ) -> Map {
        let normalisation = self.normalisation(norm, &[x]);
        let mut y = self.like(x, channels);
        let source = Source { parts: &[x], affine: Some(normalisation.affine(silu)) };
        self.convolve(&conv.kernel, source, &Finish::bias(&conv.bias), &mut y, meant);
        normalisation.put(&mut self.workspace.arena);
        y
    }

    fn normalisation(&mut self, norm: &PackedNorm, parts: &[&Map]) -> Normalisation {
        let table: &GroupTable = match &norm.table {
            Table::Fixed(table) => table,
            Table::Pipe(pipe) => self.cut.tables.of(*pipe),
        };
        let normalisation = Normalisation::new(self.workspace, parts, table, &norm.scale, &norm.shift, EPS);
        let shape = [parts[0].height, parts[0].width, table.channels(), table.channels()];
        self.workspace.ended(format_args!("{}", norm.name), Kind::Norm, shape, 0);
        normalisation
    }

    fn like(&mut self, map: &Map, channels: usize) -> Map {
        self.workspace.arena.map([map.batch, map.height, map.width, channels])
    }

    /// `(main + down(wide)) * scale`
    fn aux_residual(&mut self, name: &str, down: &Resampler, wide: Map, main: Map) -> Map {
        let mut y = self.resample(format_args!("{name}.down"), down, &wide);
        for (y, main) in y.data_mut().iter_mut().zip(main.data()) {
            *y = (*y + main) * SKIP_SCALE;
        }
        self.ended(format_args!("{name}.add"), Kind::Elementwise, &y);
        self.workspace.arena.put(wide);
        self.workspace.arena.put(main);
        y
    }

    fn block(&mut self, block: &PackedBlock, parts: &[&Map]) -> Map {
        let normalisation = self.normalisation(&block.norm0, parts);
        let source = Source { parts, affine: Some(normalisation.affine(true)) };
        let bias = Some((&self.biases[block.bias_offset..], self.bias_pitch));
        let finish = Finish { bias, residual: None, scale: 1.0 };
        let inner = block.inner(self.cut);
        let hidden = match &block.resampling {
            None => {
                let mut hidden = self.like(parts[0], inner);
                self.convolve(&block.conv0, source, &finish, &mut hidden, inner);
                hidden
            }
            Some(resampling) => {
                let resampled = self.resampled(format_args!("{}.input", block.name), &resampling.input, source);
                let mut hidden = self.like(&resampled, inner);
                let source = Source { parts: &[&resampled], affine: None };
                self.convolve(&block.conv0, source, &finish, &mut hidden, inner);
                self.workspace.arena.put(resampled);
                hidden
            }
        };
        normalisation.put(&mut self.workspace.arena);

        let skip = self.skip(block, parts);
        let normalisation = self.normalisation(&block.norm1, &[&hidden]);
        let mut y = self.like(&hidden, block.out_channels);
        let residual = skip.as_ref().unwrap_or(parts[0]);
        let finish = Finish { residual: Some(residual), scale: SKIP_SCALE, ..Finish::bias(&block.bias) };
        let source = Source { parts: &[&hidden], affine: Some(normalisation.affine(true)) };
        self.convolve(&block.conv1, source, &finish, &mut y, block.out_channels);
        normalisation.put(&mut self.workspace.arena);
        self.workspace.arena.put(hidden);
        if let Some(skip) = skip {
            self.workspace.arena.put(skip);
        }
        match &block.attention {
            None => y,
            Some(attention) => self.attention(attention, y),
        }
    }

    /// What the block adds to its convolutions' result, unless that is its input as it is.
    fn skip(&mut self, block: &PackedBlock, parts: &[&Map]) -> Option<Map> {
        let source = Source { parts, affine: None };
        let Some(kernel) = &block.skip else {
            // Without a convolution the parts have the channels of the output together.
            return (parts.len() > 1).then(|| {
                let mut whole = self.like(parts[0], source.channels());
                copy(self.workspace, source, &mut whole);
                self.ended(format_args!("{}.concat", block.name), Kind::Copy, &whole);
                whole
            });
        };
        // Its bias is part of the block's.
        let finish = Finish { bias: None, residual: None, scale: 1.0 };
        Some(match &block.resampling {
            None => {
                let mut y = self.like(parts[0], block.out_channels);
                self.convolve(kernel, source, &finish, &mut y, block.out_channels);
                y
            }
            Some(Resample { input, skip: None }) => {
                let small = self.resampled(format_args!("{}", kernel.name), input, source);
                let mut y = self.like(&small, block.out_channels);
                let source = Source { parts: &[&small], affine: None };
                self.convolve(kernel, source, &finish, &mut y, block.out_channels);
                self.workspace.arena.put(small);
                y
            }
            // A 1x1 convolution commutes with the filter.
            Some(Resample { skip: Some(up), .. }) => {
                let mut small = self.like(parts[0], block.out_channels);
                self.convolve(kernel, source, &finish, &mut small, block.out_channels);
                let y = self.resample(format_args!("{}.up", kernel.name), up, &small);
                self.workspace.arena.put(small);
                y
            }
        })
    }

    fn resampled(&mut self, name: fmt::Arguments, resampler: &Resampler, source: Source) -> Map {
        if let Source { parts: [map], affine: None } = source {
            return self.resample(format_args!("{name}.resample"), resampler, map);
        }
        let mut whole = self.like(source.parts[0], source.channels());
        copy(self.workspace, source, &mut whole);
        self.ended(format_args!("{name}.copy"), Kind::Copy, &whole);
        let y = self.resample(format_args!("{name}.resample"), resampler, &whole);
        self.workspace.arena.put(whole);
        y
    }

    fn resample(&mut self, name: fmt::Arguments, resampler: &Resampler, x: &Map) -> Map {
        let [height, width] = resampler.output();
        let mut y = self.workspace.arena.map([x.batch, height, width, x.channels]);
        resample(self.workspace, resampler, x, &mut y);
        self.ended(name, Kind::Resample, &y);
        y
    }

    fn attention(&mut self, params: &PackedAttention, x: Map) -> Map {
        let dim = self.cut.widths.0[params.pipe];
        let channels = [attention::columns(HEADS, dim), 3 * HEADS * dim];
        let qkv = self.normed_conv(&params.norm, false, &params.qkv, &x, channels);
        let mut mixed = self.like(&x, HEADS * dim);
        attention(self.workspace, &qkv, HEADS, dim, &mut mixed);
        let pixels = x.height * x.width;
        // Scores, then the mixing of values.
        let macs = 2 * x.batch * HEADS * dim * pixels * pixels;
        let shape = [x.height, x.width, 3 * HEADS * dim, HEADS * dim];
        self.workspace.ended(format_args!("{}", params.name), Kind::Attention, shape, macs as u64);
        self.workspace.arena.put(qkv);
        let mut y = self.like(&x, x.channels);
        let finish = Finish { residual: Some(&x), scale: SKIP_SCALE, ..Finish::bias(&params.proj.bias) };
        let source = Source { parts: &[&mixed], affine: None };
        self.convolve(&params.proj.kernel, source, &finish, &mut y, x.channels);
        self.workspace.arena.put(mixed);
        self.workspace.arena.put(x);
        y
    }
}

impl PackedLayer {
    fn bytes(&self) -> usize {
        match self {
            Self::Conv(conv) | Self::AuxResidual { conv, .. } => conv.bytes(),
            Self::Block(block) => block.bytes(),
        }
    }
}

impl PackedConv {
    fn bytes(&self) -> usize {
        self.kernel.conv.bytes() + size_of_val(&*self.bias)
    }
}

impl PackedNorm {
    fn bytes(&self) -> usize {
        size_of_val(&*self.scale) + size_of_val(&*self.shift)
    }
}

impl PackedBlock {
    /// Channels between its convolutions.
    fn inner(&self, cut: &Cut) -> usize {
        let (pipe, whole) = self.pipe;
        pipe.map_or(whole, |pipe| cut.widths.0[pipe])
    }

    fn bytes(&self) -> usize {
        let convs = [&self.conv0, &self.conv1].into_iter().chain(&self.skip).map(|kernel| kernel.conv.bytes());
        let norms = self.norm0.bytes() + self.norm1.bytes();
        let attention = self.attention.as_ref().map_or(0, |a| a.norm.bytes() + a.qkv.bytes() + a.proj.bytes());
        convs.sum::<usize>() + norms + attention + self.affine.bytes() + size_of_val(&*self.bias)
    }
}

/// Packs one network.
struct Packer<'a> {
    net: &'a SongUnet,
    /// By index in the spec.
    weights: Vec<Vec<f32>>,
    bias_pitch: usize,
}

impl Packer<'_> {
    fn pack(mut self) -> Packed {
        let net = self.net;
        let config = net.config();
        let mut side = config.img_resolution;
        let mut encoder = Vec::new();
        for layer in &net.encoder {
            encoder.push(match layer {
                Layer::Conv(conv) => PackedLayer::Conv(self.conv(conv, 1, side)),
                Layer::Block(block) => PackedLayer::Block(Box::new(self.block(block, &mut side))),
                Layer::AuxResidual(conv) => {
                    let filter = &config.resample_filter;
                    let pad = 1 + (filter.len() - 1) / 2;
                    let conv = self.conv(conv, pad, 2 * side);
                    // The block before has halved the main path already.
                    let wide = 2 * side + 2 * pad - 2;
                    let down = Direction::Down;
                    let down = Resampler::new(down, [wide, wide, pitch(conv.channels)], filter, 0, down.gain());
                    PackedLayer::AuxResidual { conv, pad, down }
                }
            });
        }
        let decoder = net.decoder.iter().map(|block| self.block(block, &mut side)).collect();
        let frequencies = match &net.frequencies {
            Frequencies::Positional(frequencies) => frequencies.clone(),
            Frequencies::Fourier(param) => self.weights[*param].iter().map(|frequency| 2.0 * PI * frequency).collect(),
        };
        let label_scale = (config.label_dim as f32).sqrt();
        Packed {
            frequencies,
            map_label: net.map_label.as_ref().map(|map| self.linear(map, label_scale, None)),
            map_layers: [&net.map_layers[0], &net.map_layers[1]].map(|map| self.linear(map, 1.0, None)),
            noise_channels: config.model_channels * config.channel_mult_noise,
            emb_channels: config.model_channels * config.channel_mult_emb,
            encoder,
            decoder,
            out_norm: self.norm(&net.out_norm),
            out_conv: self.conv(&net.out_conv, 1, side),
            bias_pitch: self.bias_pitch,
        }
    }

    /// `[kernel, kernel, c_in, c_out]` weights, for maps of `side` by `side`.
    fn kernel(&self, param: usize, pad: usize, side: usize) -> Kernel {
        let shape = self.net.shape(param);
        let (kernel, c_in, c_out) = (shape[0], shape[2], shape[3]);
        let weights = &self.weights[param];
        let method = Method::of(kernel, pad, c_in, side);
        let conv = Conv::new(method, [kernel, pad, c_in, c_out], |tap, i, o| weights[(tap * c_in + i) * c_out + o]);
        Kernel { name: self.net.layer_name(param), conv }
    }

    fn conv(&self, params: &Affine, pad: usize, side: usize) -> PackedConv {
        let channels = self.weights[params.bias].len();
        PackedConv { kernel: self.kernel(params.weight, pad, side), bias: padded(&self.weights[params.bias]), channels }
    }

    /// A bias with another one added, where there is one.
    fn bias(&self, param: usize, more: Option<usize>) -> Vec<f32> {
        let mut bias = self.weights[param].clone();
        if let Some(more) = more {
            bias.iter_mut().zip(&self.weights[more]).for_each(|(bias, more)| *bias += more);
        }
        bias
    }

    /// `[c_in, c_out]` weights, all multiplied by `scale`, and their bias with another one added.
    fn linear(&self, params: &Affine, scale: f32, more: Option<usize>) -> Linear {
        let (weights, bias) = (&self.weights[params.weight], self.bias(params.bias, more));
        let c_out = bias.len();
        Linear::new([weights.len() / c_out, c_out], &bias, |i, o| weights[i * c_out + o] * scale)
    }

    fn norm(&self, params: &Norm) -> PackedNorm {
        let (scale, shift) = (self.weights[params.affine.weight].clone(), self.weights[params.affine.bias].clone());
        PackedNorm { name: self.net.layer_name(params.affine.weight), scale, shift, table: params.table.clone() }
    }

    /// A block on maps of `side`, which becomes the side of its output.
    fn block(&mut self, params: &Block, side: &mut usize) -> PackedBlock {
        let config = self.net.config();
        let (in_side, in_channels) = (*side, params.in_channels);
        let out_channels = self.weights[params.conv1.bias].len();
        let inner = self.weights[params.conv0.bias].len();
        let resampler = |direction: Direction, channels: usize| {
            let filter = &config.resample_filter;
            let size = [in_side, in_side, pitch(channels)];
            Resampler::new(direction, size, filter, (filter.len() - 1) / 2, direction.gain())
        };
        let resampling = match params.resampling {
            Resampling::Keep => None,
            Resampling::Down => Some(Resample { input: resampler(Direction::Down, in_channels), skip: None }),
            Resampling::Up => Some(Resample {
                input: resampler(Direction::Up, in_channels),
                skip: Some(resampler(Direction::Up, out_channels)),
            }),
        };
        if let Some(resample) = &resampling {
            *side = resample.input.output()[0];
        }
        let pipe = match params.norm1.table {
            Table::Pipe(pipe) => Some(pipe),
            Table::Fixed(_) => None,
        };
        let bias_offset = self.bias_pitch;
        self.bias_pitch += pitch(inner);
        PackedBlock {
            name: self.net.layer_name(params.conv0.weight).trim_end_matches(".conv0").to_owned(),
            in_channels,
            out_channels,
            pipe: (pipe, inner),
            norm0: self.norm(&params.norm0),
            conv0: self.kernel(params.conv0.weight, 1, *side),
            affine: self.linear(&params.affine, 1.0, Some(params.conv0.bias)),
            bias_offset,
            norm1: self.norm(&params.norm1),
            conv1: self.kernel(params.conv1.weight, 1, *side),
            bias: padded(&self.bias(params.conv1.bias, params.skip.map(|skip| skip.bias))),
            skip: params.skip.as_ref().map(|skip| self.kernel(skip.weight, 0, *side)),
            resampling,
            attention: params.attention.as_ref().map(|attention| self.attention(attention)),
        }
    }

    fn attention(&self, params: &Attention) -> PackedAttention {
        let shape = self.net.shape(params.qkv.weight);
        let (c_in, dim) = (shape[0], shape[3]);
        let (weights, bias) = (&self.weights[params.qkv.weight], &self.weights[params.qkv.bias]);
        // The pixel of a query has its parts in panels, the last of them filled up with zeros.
        let columns = attention::columns(HEADS, dim);
        let mut from = vec![None; columns];
        for part in 0..3 {
            for head in 0..HEADS {
                for offset in 0..dim {
                    from[attention::column(HEADS, part, head, offset)] = Some((part * HEADS + head) * dim + offset);
                }
            }
        }
        let stride = 3 * HEADS * dim;
        let value = |_, i: usize, column: usize| from[column].map_or(0.0, |place| weights[i * stride + place]);
        let qkv = Conv::new(Method::Direct, [1, 0, c_in, columns], value);
        let bias = from.iter().map(|place| place.map_or(0.0, |place| bias[place])).collect();
        let proj = &self.weights[params.proj.weight];
        let c_out = self.weights[params.proj.bias].len();
        let value = |_, i: usize, o: usize| {
            let (head, offset) = attention::head_and_offset(HEADS, i);
            proj[(head * dim + offset) * c_out + o]
        };
        let proj = Conv::new(Method::Direct, [1, 0, HEADS * dim, c_out], value);
        let kernel = |params: &Affine, conv: Conv| Kernel { name: self.net.layer_name(params.weight), conv };
        PackedAttention {
            name: self.net.spec().pipes[params.pipe].name.clone(),
            pipe: params.pipe,
            norm: self.norm(&params.norm),
            qkv: PackedConv { kernel: kernel(&params.qkv, qkv), bias, channels: columns },
            proj: PackedConv {
                kernel: kernel(&params.proj, proj),
                bias: padded(&self.weights[params.proj.bias]),
                channels: c_out,
            },
        }
    }
}

/// A bias on whole panels.
fn padded(bias: &[f32]) -> Vec<f32> {
    let mut bias = bias.to_vec();
    bias.resize(pitch(bias.len()), 0.0);
    bias
}

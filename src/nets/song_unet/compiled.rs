//! SongUNet for a GPU: the weights as one block of bytes, and a call of any subnet as a list of launches.
//!
//! It computes what [`SongUnet::forward`] and [`super::packed`] compute, and the tests hold it against both. Nothing here
//! touches a device: the list of a call says what it costs and what memory it needs before there is any.

use super::{Affine, Attention, Block, EPS, Frequencies, HEADS, Layer, Norm, Resampling, SKIP_SCALE, SongUnet, Table};
use crate::nets::sliced::Tables;
use crate::ops::cpu::group_norm::GroupTable;
use crate::ops::cpu::resample::Direction;
use crate::ops::cuda::attention::attention;
use crate::ops::cuda::conv::{Finish, Weights, conv, pack, pack_bias};
use crate::ops::cuda::embedding::{self, embedding};
use crate::ops::cuda::map::{Filter, MAX_TAPS, map};
use crate::ops::cuda::moments::{self, Scratch, moments};
use crate::ops::cuda::{Arena, Element, Launch, Map, pitch};
use crate::supernet::{Supernet, Widths};
use crate::{Error, Result};
use std::f32::consts::PI;

/// Places start at multiples of this.
const ALIGN: usize = 256;

/// A SongUNet and its subnets for a machine. Addresses in it are places in the block of bytes that [`Compiled::new`] gives.
#[derive(Debug)]
pub struct Compiled {
    element: Element,
    side: usize,
    channels: usize,
    filter: Vec<f32>,
    frequencies: u64,
    labels: Option<u64>,
    noise_channels: usize,
    map_layers: [Conv; 2],
    /// From the embedding to the biases of all blocks, side by side.
    biases: Conv,
    encoder: Vec<CompiledLayer>,
    decoder: Vec<CompiledBlock>,
    out_norm: CompiledNorm,
    out_conv: Conv,
    subnets: Vec<Cut>,
    weight_bytes: usize,
    table_bytes: usize,
}

/// A subnet: the kept channels of every pipe and the groups of its norm.
#[derive(Debug)]
struct Cut {
    widths: Widths,
    tables: Vec<moments::Table>,
}

#[derive(Debug)]
enum CompiledLayer {
    Conv(Conv),
    Block(Box<CompiledBlock>),
    AuxResidual(Conv),
}

#[derive(Debug)]
struct Conv {
    name: String,
    weights: Weights,
    bias: Option<u64>,
}

#[derive(Debug)]
struct CompiledNorm {
    name: String,
    scale: u64,
    shift: u64,
    table: Groups,
}

#[derive(Clone, Copy, Debug)]
enum Groups {
    Fixed(moments::Table),
    Pipe(usize),
}

#[derive(Debug)]
struct CompiledBlock {
    name: String,
    in_channels: usize,
    resampling: Resampling,
    norm0: CompiledNorm,
    conv0: Conv,
    /// The pipe between its convolutions, where it can shrink, and its full width.
    pipe: (Option<usize>, usize),
    /// Where in the biases of all blocks its own begin.
    bias_column: usize,
    norm1: CompiledNorm,
    /// Its bias holds that of `skip`.
    conv1: Conv,
    skip: Option<Conv>,
    attention: Option<CompiledAttention>,
}

#[derive(Debug)]
struct CompiledAttention {
    name: String,
    pipe: usize,
    norm: CompiledNorm,
    qkv: Conv,
    proj: Conv,
}

/// Where a call finds what is not in the list of its launches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// The block of bytes of [`Compiled::new`].
    pub weights: u64,
    /// [`Compiled::arena_bytes`] of memory.
    pub arena: u64,
    /// f32 by sample: c_noise.
    pub noise: u64,
    /// u32 by sample: the class, or the number of classes for none.
    pub classes: u64,
    /// u64 by sample: where its input is, elements `[pixels, 8]`.
    pub samples: u64,
    /// u32 by sample, zeros.
    pub counters: u64,
}

/// A call as launches.
#[derive(Clone, Debug)]
pub struct CallLaunches {
    /// The launches, in order.
    pub launches: Vec<Launch>,
    /// The raw network's output.
    pub output: Map,
    /// Memory of the arena that they use.
    pub arena_bytes: usize,
}

impl Compiled {
    /// Lays out `net` with these subnets; gives the block of bytes that belongs in the machine's memory.
    ///
    /// # Errors
    /// [`Error::Input`] for a network whose shapes the kernels do not take, [`Error::Tensor`] on a device fault.
    pub fn new(net: &SongUnet, supernet: &Supernet, element: Element, subnets: &[Widths]) -> Result<(Self, Vec<u8>)> {
        let config = net.config();
        let refuse = |field: &str, problem: String| Err(Error::input(field, problem));
        if !config.model_channels.is_multiple_of(8) {
            let channels = config.model_channels;
            return refuse("model_channels", format!("{channels} is not a multiple of 8, which a GPU needs"));
        }
        if config.resample_filter.len() > MAX_TAPS {
            let taps = config.resample_filter.len();
            return refuse("resample_filter", format!("has {taps} taps; a GPU takes at most {MAX_TAPS}"));
        }
        let weights = supernet.values()?;
        let mut layout =
            Layout { net, element, weights: &weights, bytes: Vec::new(), blocks: Vec::new(), bias_columns: 0 };
        let mut compiled = layout.network();
        compiled.weight_bytes = layout.bytes.len();
        for widths in subnets {
            let tables = Tables::new(net.spec(), supernet, widths);
            let tables = (0..widths.0.len()).map(|pipe| layout.table(tables.of(pipe))).collect();
            compiled.subnets.push(Cut { widths: widths.clone(), tables });
        }
        compiled.table_bytes = layout.bytes.len() - compiled.weight_bytes;
        Ok((compiled, layout.bytes))
    }

    /// The type of activations and weights.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Memory of the weights, which all subnets share.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// Memory that all subnets need beside them: their tables of groups.
    pub fn table_bytes(&self) -> usize {
        self.table_bytes
    }

    /// Memory of the activations of a call of any subnet on so many samples.
    pub fn arena_bytes(&self, samples: usize) -> usize {
        let bytes = |subnet| self.call(subnet, samples, &Addresses::default()).arena_bytes;
        (0..self.subnets.len()).map(bytes).max().unwrap_or(0)
    }

    /// A call of the raw network F of this subnet on so many samples.
    pub fn call(&self, subnet: usize, samples: usize, addresses: &Addresses) -> CallLaunches {
        let arena = Arena::new(addresses.arena);
        let cut = &self.subnets[subnet];
        let mut run = Run { net: self, cut, addresses, samples, arena, launches: Vec::new(), biases: None };
        let output = run.network();
        let Run { launches, arena, .. } = run;
        CallLaunches { launches, output, arena_bytes: arena.bytes() }
    }
}

impl CompiledBlock {
    /// Channels between its convolutions.
    fn inner(&self, cut: &Cut) -> usize {
        let (pipe, whole) = self.pipe;
        pipe.map_or(whole, |pipe| cut.widths.0[pipe])
    }
}

/// One call under way.
struct Run<'a> {
    net: &'a Compiled,
    cut: &'a Cut,
    addresses: &'a Addresses,
    samples: usize,
    arena: Arena,
    launches: Vec<Launch>,
    /// Those of all blocks: one sample whose pixels are the batch's.
    biases: Option<Map>,
}

impl Run<'_> {
    fn network(&mut self) -> Map {
        let net = self.net;
        self.embed();
        // Its place is where the samples' addresses say.
        let x = Map { address: 0, samples: self.samples, height: net.side, width: net.side, channels: net.channels };
        let mut skips: Vec<Map> = Vec::new();
        // The image at the end of the side path, as an index into `skips`.
        let mut aux = None;
        for layer in &net.encoder {
            let made = match layer {
                CompiledLayer::Conv(conv) => {
                    let from = skips.last().copied().unwrap_or(x);
                    self.convolve(conv, &[&from], 1, conv.weights.outputs, Finish::NONE)
                }
                CompiledLayer::Block(block) => {
                    let from = *skips.last().expect("a convolution is first");
                    self.block(block, &[&from])
                }
                CompiledLayer::AuxResidual(conv) => {
                    // The convolution goes first and leaves the border that the filter will consume (EDM's fused form).
                    let from = aux.map_or(x, |index: usize| skips[index]);
                    let pad = 1 + (net.filter.len() - 1) / 2;
                    let wide = self.convolve(conv, &[&from], pad, conv.weights.outputs, Finish::NONE);
                    let main = skips.pop().expect("a block comes before");
                    aux = Some(skips.len());
                    let down = Filter { direction: Direction::Down, taps: &net.filter, pad: 0 };
                    let made = self.map(&conv.name, &[&wide], None, false, Some(down), Some(&main), SKIP_SCALE);
                    self.put(&wide);
                    self.put(&main);
                    made
                }
            };
            skips.push(made);
        }
        // The encoder's last map is where the decoder begins, and the first that it takes back.
        let mut h: Option<Map> = None;
        for block in &net.decoder {
            let input = h.or(skips.last().copied()).expect("the encoder has a layer");
            let made = if input.channels == block.in_channels {
                self.block(block, &[&input])
            } else {
                let skip = skips.pop().expect("the decoder has a block for each skip");
                let made = self.block(block, &[&h.unwrap_or(skip), &skip]);
                self.put(&skip);
                made
            };
            if let Some(done) = h.replace(made) {
                self.put(&done);
            }
        }
        let h = h.expect("the decoder has a block");
        let normed = self.normed(&net.out_norm, &[&h], true, None);
        self.put(&h);
        let output = self.convolve(&net.out_conv, &[&normed], 1, net.channels, Finish::NONE);
        self.put(&normed);
        output
    }

    /// The embedding, and from it the biases of the first convolutions of all blocks.
    fn embed(&mut self) {
        let net = self.net;
        let rows = |channels: usize| Map { address: 0, samples: 1, height: self.samples, width: 1, channels };
        let emb = self.take(rows(net.noise_channels));
        let from = embedding::Embedding {
            noise: self.addresses.noise,
            classes: self.addresses.classes,
            frequencies: self.at(net.frequencies),
            labels: net.labels.map(|labels| self.at(labels)),
        };
        self.launches.push(embedding(net.element, &from, &emb).of("embedding"));
        let mut from = emb;
        for layer in &net.map_layers {
            let to = self.convolve(layer, &[&from], 0, layer.weights.outputs, Finish { silu: true, ..Finish::NONE });
            self.put(&from);
            from = to;
        }
        self.biases = Some(self.convolve(&net.biases, &[&from], 0, net.biases.weights.outputs, Finish::NONE));
        self.put(&from);
    }

    fn block(&mut self, block: &CompiledBlock, parts: &[&Map]) -> Map {
        let net = self.net;
        let filter = |direction| Filter { direction, taps: &net.filter, pad: (net.filter.len() - 1) / 2 };
        let resampling = match block.resampling {
            Resampling::Keep => None,
            Resampling::Down => Some(filter(Direction::Down)),
            Resampling::Up => Some(filter(Direction::Up)),
        };
        let normed = self.normed(&block.norm0, parts, true, resampling);
        let inner = block.inner(self.cut);
        let biases = self.biases.expect("the embedding comes first");
        let bias = biases.address + (block.bias_column * net.element.bytes()) as u64;
        let finish = Finish { sample_bias: Some((bias, biases.pitch())), ..Finish::NONE };
        let hidden = self.convolve(&block.conv0, &[&normed], 1, inner, finish);
        self.put(&normed);
        let normed = self.normed(&block.norm1, &[&hidden], true, None);
        self.put(&hidden);

        let skip = self.skip(block, parts, resampling);
        let residual = skip.as_ref().unwrap_or(parts[0]);
        let finish = Finish { residual: Some(residual), scale: SKIP_SCALE, ..Finish::NONE };
        let y = self.convolve(&block.conv1, &[&normed], 1, block.conv1.weights.outputs, finish);
        self.put(&normed);
        if let Some(skip) = skip {
            self.put(&skip);
        }
        match &block.attention {
            None => y,
            Some(attention) => self.attention(attention, y),
        }
    }

    /// What the block adds to its convolutions' result, unless that is its input as it is.
    fn skip(&mut self, block: &CompiledBlock, parts: &[&Map], resampling: Option<Filter>) -> Option<Map> {
        let Some(conv) = &block.skip else {
            // Without a convolution the parts have the channels of the output together.
            let whole = format!("{}.concat", block.name);
            return (parts.len() > 1).then(|| self.map(&whole, parts, None, false, None, None, 1.0));
        };
        let name = format!("{}.resample", conv.name);
        let outputs = conv.weights.outputs;
        Some(match resampling {
            None => self.convolve(conv, parts, 0, outputs, Finish::NONE),
            Some(filter) if filter.direction == Direction::Down => {
                let small = self.map(&name, parts, None, false, resampling, None, 1.0);
                let y = self.convolve(conv, &[&small], 0, outputs, Finish::NONE);
                self.put(&small);
                y
            }
            // A 1x1 convolution commutes with the filter: it goes where the map is small.
            Some(_) => {
                let small = self.convolve(conv, parts, 0, outputs, Finish::NONE);
                let y = self.map(&name, &[&small], None, false, resampling, None, 1.0);
                self.put(&small);
                y
            }
        })
    }

    fn attention(&mut self, params: &CompiledAttention, x: Map) -> Map {
        let dim = self.cut.widths.0[params.pipe];
        let normed = self.normed(&params.norm, &[&x], false, None);
        let qkv = self.convolve(&params.qkv, &[&normed], 0, dim, Finish::NONE);
        self.put(&normed);
        let mixed = self.take(Map { channels: HEADS * dim, ..x });
        self.launches.push(attention(self.net.element, &qkv, &mixed).of(&params.name));
        self.put(&qkv);
        let finish = Finish { residual: Some(&x), scale: SKIP_SCALE, ..Finish::NONE };
        let y = self.convolve(&params.proj, &[&mixed], 0, x.channels, finish);
        self.put(&mixed);
        self.put(&x);
        y
    }

    /// `act(norm(x))`, through a filter where there is one.
    fn normed(&mut self, norm: &CompiledNorm, parts: &[&Map], silu: bool, filter: Option<Filter>) -> Map {
        let element = self.net.element;
        let table = match norm.table {
            Groups::Fixed(table) => table,
            Groups::Pipe(pipe) => self.cut.tables[pipe],
        };
        let table = moments::Table { address: self.at(table.address), ..table };
        let params = moments::Norm { scale: self.at(norm.scale), shift: self.at(norm.shift), table };
        let sizes = [moments::sums_bytes(element, parts), moments::affine_bytes(element, parts)];
        let [sums, affine] = sizes.map(|bytes| self.arena.take(bytes));
        let (scratch, affine) =
            (Scratch { sums, counters: self.addresses.counters }, moments::Affine { address: affine });
        self.launches.push(moments(element, parts, &params, EPS, scratch, affine).of(&norm.name));
        self.arena.put(sums, sizes[0]);
        let y = self.map(&norm.name, parts, Some(affine), silu, filter, None, 1.0);
        self.arena.put(affine.address, sizes[1]);
        y
    }

    #[expect(clippy::too_many_arguments, reason = "what the pass does, named at each call")]
    fn map(
        &mut self,
        name: &str,
        parts: &[&Map],
        affine: Option<moments::Affine>,
        silu: bool,
        filter: Option<Filter>,
        residual: Option<&Map>,
        scale: f32,
    ) -> Map {
        let size = |side| filter.map_or(side, |filter| filter.size(side));
        let channels = parts.iter().map(|part| part.channels).sum();
        let y = Map { height: size(parts[0].height), width: size(parts[0].width), channels, ..*parts[0] };
        let y = self.take(y);
        self.launches.push(map(self.net.element, parts, affine, silu, filter, residual, scale, &y).of(name));
        y
    }

    /// The convolution's bias is added to what `finish` says.
    fn convolve(&mut self, layer: &Conv, parts: &[&Map], pad: usize, outputs: usize, finish: Finish) -> Map {
        let weights = Weights { address: self.at(layer.weights.address), ..layer.weights };
        let grow = |side: usize| side + 2 * pad + 1 - weights.kernel;
        let channels = if weights.groups == 1 { outputs } else { weights.groups * pitch(outputs) };
        let y = Map { height: grow(parts[0].height), width: grow(parts[0].width), channels, ..*parts[0] };
        let y = self.take(y);
        let finish = Finish { bias: layer.bias.map(|bias| self.at(bias)), ..finish };
        // The network's input is where the samples' addresses say.
        let samples = (parts[0].address == 0).then_some(self.addresses.samples);
        self.launches.push(conv(self.net.element, parts, samples, &weights, pad, outputs, finish, &y).of(&layer.name));
        y
    }

    fn at(&self, place: u64) -> u64 {
        self.addresses.weights + place
    }

    fn take(&mut self, map: Map) -> Map {
        Map { address: self.arena.take(map.bytes(self.net.element)), ..map }
    }

    fn put(&mut self, map: &Map) {
        self.arena.put(map.address, map.bytes(self.net.element));
    }
}

/// Puts one network into a block of bytes.
struct Layout<'a> {
    net: &'a SongUnet,
    element: Element,
    /// By index in the spec.
    weights: &'a [Vec<f32>],
    bytes: Vec<u8>,
    /// What the blocks want of the embedding: their `affine` and `conv0`, in order.
    blocks: Vec<(Affine, Affine)>,
    bias_columns: usize,
}

impl Layout<'_> {
    fn network(&mut self) -> Compiled {
        let (net, config) = (self.net, self.net.config());
        let encoder = net.encoder.iter().map(|layer| match layer {
            Layer::Conv(params) => CompiledLayer::Conv(self.conv(params)),
            Layer::Block(block) => CompiledLayer::Block(Box::new(self.block(block))),
            Layer::AuxResidual(params) => CompiledLayer::AuxResidual(self.conv(params)),
        });
        let encoder = encoder.collect();
        let decoder = net.decoder.iter().map(|block| self.block(block)).collect();
        let frequencies = match &net.frequencies {
            Frequencies::Positional(frequencies) => frequencies.clone(),
            Frequencies::Fourier(param) => self.weights[*param].iter().map(|frequency| 2.0 * PI * frequency).collect(),
        };
        let noise_channels = config.model_channels * config.channel_mult_noise;
        Compiled {
            element: self.element,
            side: config.img_resolution,
            channels: config.img_channels,
            filter: config.resample_filter.clone(),
            frequencies: self.floats(&frequencies),
            labels: net.map_label.map(|map| self.labels(&map, noise_channels)),
            noise_channels,
            map_layers: net.map_layers.map(|map| self.linear(&map)),
            biases: self.biases(),
            encoder,
            decoder,
            out_norm: self.norm(&net.out_norm),
            out_conv: self.conv(&net.out_conv),
            subnets: Vec::new(),
            weight_bytes: 0,
            table_bytes: 0,
        }
    }

    fn push(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        self.bytes.extend_from_slice(bytes);
        (self.bytes.len() - bytes.len()) as u64
    }

    fn floats(&mut self, values: &[f32]) -> u64 {
        self.push(bytemuck::cast_slice(values))
    }

    fn table(&mut self, table: &GroupTable) -> moments::Table {
        let (words, placed) = moments::Table::new(table, 0);
        moments::Table { address: self.push(bytemuck::cast_slice(&words)), ..placed }
    }

    /// Packs weights by tap, input, group and output and, where there is one, a bias by group and output.
    fn place(
        &mut self,
        name: String,
        weights: Weights,
        value: impl Fn(usize, usize, usize, usize) -> f32,
        bias: Option<&dyn Fn(usize, usize) -> f32>,
    ) -> Conv {
        let address = self.push(&pack(self.element, &weights, value));
        let bias = bias.map(|bias| self.floats(&pack_bias(&weights, bias)));
        Conv { name, weights: Weights { address, ..weights }, bias }
    }

    fn conv(&mut self, params: &Affine) -> Conv {
        self.conv_with(params, Some(params.bias), None)
    }

    /// `[kernel, kernel, c_in, c_out]` weights, and the sum of one or two biases.
    fn conv_with(&mut self, params: &Affine, bias: Option<usize>, more: Option<usize>) -> Conv {
        let shape = self.net.shape(params.weight);
        let (kernel, inputs, outputs) = (shape[0], shape[2], shape[3]);
        let weights = Weights { address: 0, kernel, inputs, outputs, groups: 1 };
        let (all, weight) = (self.weights, &self.weights[params.weight]);
        let value = |tap: usize, i: usize, _: usize, o: usize| weight[(tap * inputs + i) * outputs + o];
        let sum = |_: usize, o: usize| bias.into_iter().chain(more).map(|param| all[param][o]).sum();
        self.place(self.net.layer_name(params.weight), weights, value, bias.is_some().then_some(&sum as _))
    }

    /// `[c_in, c_out]` weights: a convolution of one pixel.
    fn linear(&mut self, params: &Affine) -> Conv {
        let shape = self.net.shape(params.weight);
        let (inputs, outputs) = (shape[0], shape[1]);
        let weights = Weights { address: 0, kernel: 1, inputs, outputs, groups: 1 };
        let (weight, bias) = (&self.weights[params.weight], &self.weights[params.bias]);
        let value = |_: usize, i: usize, _: usize, o: usize| weight[i * outputs + o];
        self.place(self.net.layer_name(params.weight), weights, value, Some(&|_, o| bias[o]))
    }

    /// A row by class, and one for none: the label layer on one-hot rows, which EDM scales by the root of their length.
    fn labels(&mut self, params: &Affine, channels: usize) -> u64 {
        let classes = self.net.config().label_dim;
        let scale = (classes as f32).sqrt();
        let (weights, bias) = (&self.weights[params.weight], &self.weights[params.bias]);
        let mut rows = Vec::with_capacity((classes + 1) * channels);
        for class in 0..classes {
            let row = &weights[class * channels..][..channels];
            rows.extend(row.iter().zip(bias).map(|(weight, bias)| scale * weight + bias));
        }
        rows.extend(bias);
        self.floats(&rows)
    }

    /// The layers from the embedding to the blocks' first biases, side by side; each holds the bias of its convolution.
    fn biases(&mut self) -> Conv {
        let blocks = std::mem::take(&mut self.blocks);
        let inputs = self.net.config().model_channels * self.net.config().channel_mult_emb;
        // By column: the block and its channel.
        let mut columns = Vec::new();
        for (block, (affine, _)) in blocks.iter().enumerate() {
            let outputs = self.weights[affine.bias].len();
            columns.extend((0..pitch(outputs)).map(|o| (o < outputs).then_some((block, o))));
        }
        let weights = Weights { address: 0, kernel: 1, inputs, outputs: columns.len(), groups: 1 };
        let all = self.weights;
        let value = |_: usize, i: usize, _: usize, column: usize| {
            columns[column].map_or(0.0, |(block, o)| {
                let (affine, _) = blocks[block];
                all[affine.weight][i * all[affine.bias].len() + o]
            })
        };
        let bias = |_: usize, column: usize| {
            columns[column].map_or(0.0, |(block, o)| {
                let (affine, conv0) = blocks[block];
                all[affine.bias][o] + all[conv0.bias][o]
            })
        };
        self.place("affine of all blocks".to_owned(), weights, value, Some(&bias))
    }

    fn norm(&mut self, params: &Norm) -> CompiledNorm {
        let [scale, shift] = [params.affine.weight, params.affine.bias]
            .map(|param| self.push(bytemuck::cast_slice(&self.weights[param].clone())));
        let table = match &params.table {
            Table::Fixed(table) => Groups::Fixed(self.table(table)),
            Table::Pipe(pipe) => Groups::Pipe(*pipe),
        };
        CompiledNorm { name: self.net.layer_name(params.affine.weight), scale, shift, table }
    }

    fn block(&mut self, params: &Block) -> CompiledBlock {
        let inner = self.weights[params.conv0.bias].len();
        let pipe = match params.norm1.table {
            Table::Pipe(pipe) => Some(pipe),
            Table::Fixed(_) => None,
        };
        let bias_column = self.bias_columns;
        self.bias_columns += pitch(inner);
        self.blocks.push((params.affine, params.conv0));
        CompiledBlock {
            name: self.net.layer_name(params.conv0.weight).trim_end_matches(".conv0").to_owned(),
            in_channels: params.in_channels,
            resampling: params.resampling,
            norm0: self.norm(&params.norm0),
            conv0: self.conv_with(&params.conv0, None, None),
            pipe: (pipe, inner),
            bias_column,
            norm1: self.norm(&params.norm1),
            conv1: self.conv_with(&params.conv1, Some(params.conv1.bias), params.skip.map(|skip| skip.bias)),
            skip: params.skip.map(|skip| self.conv_with(&skip, None, None)),
            attention: params.attention.as_ref().map(|attention| self.attention(attention)),
        }
    }

    fn attention(&mut self, params: &Attention) -> CompiledAttention {
        let shape = self.net.shape(params.qkv.weight);
        let (inputs, dim) = (shape[0], shape[3]);
        // One head: the weights of its queries, keys and values are groups of columns, and its offsets are rows of `proj`.
        const { assert!(HEADS == 1) };
        let weights = Weights { address: 0, kernel: 1, inputs, outputs: dim, groups: 3 };
        let (weight, bias) = (&self.weights[params.qkv.weight], &self.weights[params.qkv.bias]);
        let value = |_: usize, i: usize, group: usize, o: usize| weight[(i * 3 + group) * dim + o];
        let bias = |group: usize, o: usize| bias[group * dim + o];
        let qkv = self.place(self.net.layer_name(params.qkv.weight), weights, value, Some(&bias));
        let (weight, bias) = (&self.weights[params.proj.weight], &self.weights[params.proj.bias]);
        let outputs = bias.len();
        let weights = Weights { address: 0, kernel: 1, inputs: dim, outputs, groups: 1 };
        let value = |_: usize, i: usize, _: usize, o: usize| weight[i * outputs + o];
        let proj = self.place(self.net.layer_name(params.proj.weight), weights, value, Some(&|_, o| bias[o]));
        let name = self.net.spec().pipes[params.pipe].name.clone();
        CompiledAttention { name, pipe: params.pipe, norm: self.norm(&params.norm), qkv, proj }
    }
}

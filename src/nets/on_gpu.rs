//! Inference on a GPU: a [`Program`]'s weights as one block of bytes, and a call of any subnet as a list of launches.
//!
//! Nothing here touches a device: the list of a call says what it costs and what memory it needs before there is any.

use super::layer_by_layer::layer_by_layer;
use super::program::{Branch, Channels, Embedding, Norm, Op, Over, ParamId, Product, Program, ValueId, View};
use super::sliced::Tables;
use crate::ops::Act;
use crate::ops::cpu::conv::Places;
use crate::ops::cpu::group_norm::GroupTable;
use crate::ops::cuda::attention::{self, attention};
use crate::ops::cuda::conv::{Epilogue, Weights, conv, pack, pack_bias};
use crate::ops::cuda::elementwise::{Filter, MAX_TAPS, elementwise};
use crate::ops::cuda::embedding::{self, embedding};
use crate::ops::cuda::gate::gate;
use crate::ops::cuda::group_norm::{self, Film, Scratch, Table, group_norm};
use crate::ops::cuda::layer_norm::{LayerNorm, layer_norm};
use crate::ops::cuda::map::Affine;
use crate::ops::cuda::tokens::{MAX_FRONT, pack_positions, tokens, unpatch};
use crate::ops::cuda::{Arena, Launch, Map, Precision, pitch};
use crate::supernet::{Supernet, Widths};
use crate::{Error, ImageShape, Result};
use std::sync::Arc;

/// Places start at multiples of this.
const ALIGN: usize = 256;
/// A linear layer: every pixel, and none around the map.
const LINEAR: Places = Places::square(1, 1, 0);
/// The first of two values that are read side by side has a multiple of so many channels: a vector of the kernels, in every type.
const VECTOR: usize = 8;

/// A network and its subnets for a machine. Addresses in it are places in the block of bytes that [`Compiled::new`] gives.
#[derive(Debug)]
pub struct Compiled {
    program: Arc<Program>,
    precision: Precision,
    /// By layer of the program.
    layers: Vec<CompiledLayer>,
    /// Where in the value of the program's branches each begins.
    branch_columns: Vec<usize>,
    subnets: Vec<SubnetTables>,
    weight_bytes: usize,
    table_bytes: usize,
}

/// A subnet: the kept channels of every pipe and the groups of its norm.
#[derive(Debug)]
struct SubnetTables {
    widths: Widths,
    tables: Vec<Table>,
}

/// Where what a layer needs beside its description is.
#[derive(Debug)]
enum CompiledLayer {
    Embedding { frequencies: Option<u64>, labels: Option<u64> },
    Product { norm: Option<CompiledNorm>, weights: Weights, bias: Option<u64> },
    Attention,
    Context,
    Gate,
    Write(Option<CompiledNorm>),
    Tokens { positions: u64 },
    Unpatch,
}

#[derive(Debug)]
struct CompiledNorm {
    scale: u64,
    shift: u64,
    /// Of channels that no pipe shrinks.
    fixed: Option<Table>,
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
    /// u64 by sample: where its input is, elements `[pixels, pitch]`.
    pub samples: u64,
    /// u64 by sample: where its text is, elements `[tokens, pitch]`. Of a network that reads texts.
    pub texts: u64,
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
    /// Lays out `program` with these subnets; gives the block of bytes that belongs in the machine's memory. Where nobody else holds the
    /// weights, their memory is given back on the way.
    ///
    /// # Errors
    /// [`Error::Input`] for a network whose shapes the kernels do not take, [`Error::Tensor`] on a device fault.
    pub fn new(
        program: Arc<Program>,
        supernet: Supernet,
        precision: Precision,
        subnets: &[Widths],
    ) -> Result<(Self, Vec<u8>)> {
        check(&program)?;
        let tables: Vec<Tables> = subnets.iter().map(|widths| Tables::new(&program.spec, &supernet, widths)).collect();
        let (mut bytes, mut layers) = (Vec::new(), Vec::with_capacity(program.layers.len()));
        layer_by_layer(&program, supernet, |index, layer, weights| {
            let mut layout = Layout { program: &program, precision, weights, bytes: &mut bytes };
            layers.push(layout.layer(index + 1, &layer.op));
        })?;
        let (branch_columns, _) = program.branch_offsets(pitch);
        let weight_bytes = bytes.len();
        let mut placed = Vec::with_capacity(subnets.len());
        for (widths, tables) in subnets.iter().zip(tables) {
            let tables = (0..widths.0.len()).map(|pipe| place_table(&mut bytes, tables.of(pipe))).collect();
            placed.push(SubnetTables { widths: widths.clone(), tables });
        }
        let table_bytes = bytes.len() - weight_bytes;
        Ok((Self { precision, layers, branch_columns, subnets: placed, weight_bytes, table_bytes, program }, bytes))
    }

    /// The type of activations and weights.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// How many subnets it has.
    pub fn subnets(&self) -> usize {
        self.subnets.len()
    }

    /// Memory of the weights, which all subnets share.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// Memory that all subnets need beside them: their tables of groups.
    pub fn table_bytes(&self) -> usize {
        self.table_bytes
    }

    /// Memory of the activations of a call of any subnet on so many samples of this size.
    pub fn arena_bytes(&self, size: ImageShape, samples: usize) -> usize {
        let bytes = |subnet| self.call(subnet, size, samples, &Addresses::default()).arena_bytes;
        (0..self.subnets.len()).map(bytes).max().unwrap_or(0)
    }

    /// A call of the raw network F of this subnet on so many samples of this size: the network's own, or with rows and columns that it
    /// takes as well.
    pub fn call(&self, subnet: usize, size: ImageShape, samples: usize, addresses: &Addresses) -> CallLaunches {
        let program = &*self.program;
        // Its place is where the samples' addresses say.
        let (ImageShape { height, width, .. }, channels) = (size, program.image.channels);
        let image = Map { address: 0, samples, height, width, channels };
        let mut call = Call {
            compiled: self,
            subnet: &self.subnets[subnet],
            addresses,
            samples,
            values: vec![image],
            arena: Arena::new(addresses.arena),
            launches: Vec::new(),
        };
        for index in 0..program.layers.len() {
            let made = call.layer(index);
            call.values.push(made);
        }
        let output = call.values[program.layers.len()];
        CallLaunches { launches: call.launches, output, arena_bytes: call.arena.bytes() }
    }
}

/// Whether the kernels take such a network.
fn check(program: &Program) -> Result<()> {
    let refuse = |problem: String| Err(Error::input("backbone", problem));
    for layer in &program.layers {
        if let Op::Tokens { front, .. } = &layer.op
            && front.len() > MAX_FRONT
        {
            let tokens = front.len();
            return refuse(format!("{} puts {tokens} tokens first; a GPU takes at most {MAX_FRONT}", layer.name));
        }
        let is_for_cpu = match &layer.op {
            Op::Pool(_) => true,
            Op::Product(product) => product.act == Some(Act::Relu),
            _ => false,
        };
        if is_for_cpu || layer.op.view().is_some_and(|view| view.parts.len() > 2) {
            let name = &layer.name;
            return refuse(format!("{name} is a layer that runs on the CPU only; give `--device cpu`"));
        }
        let Some(view) = layer.op.view() else { continue };
        if let [first, _] = view.parts[..] {
            let channels = program.values[first].channels;
            if !matches!(channels, Channels::Fixed(channels) if channels.is_multiple_of(VECTOR)) {
                let (name, channels) = (&layer.name, channels.kept(&program.spec.full()));
                return refuse(format!(
                    "{name} reads {channels} channels before others, not a fixed multiple of {VECTOR}, which a GPU needs"
                ));
            }
        }
        if let Some(taps) = view.resample.as_ref().map(|by| by.filter.len()).filter(|&taps| taps > MAX_TAPS) {
            return refuse(format!("its resampling filter has {taps} taps; a GPU takes at most {MAX_TAPS}"));
        }
    }
    Ok(())
}

/// One call under way.
struct Call<'a> {
    compiled: &'a Compiled,
    subnet: &'a SubnetTables,
    addresses: &'a Addresses,
    samples: usize,
    values: Vec<Map>,
    arena: Arena,
    launches: Vec<Launch>,
}

impl Call<'_> {
    /// Lists a layer; gives back what nobody reads after it.
    fn layer(&mut self, index: usize) -> Map {
        let compiled = self.compiled;
        let (layer, name) = (&compiled.program.layers[index], compiled.program.layers[index].name.as_str());
        let mut freed = compiled.program.freed(index).to_vec();
        let y = match (&layer.op, &compiled.layers[index]) {
            (Op::Embedding(op), CompiledLayer::Embedding { frequencies, labels }) => {
                let from = embedding::Embedding {
                    noise: self.addresses.noise,
                    classes: self.addresses.classes,
                    frequencies: frequencies.map(|frequencies| self.at(frequencies)),
                    cosines_first: op.waves.as_ref().is_some_and(|waves| waves.cosines_first),
                    labels: labels.map(|labels| self.at(labels)),
                };
                let y = self.take(self.rows(self.kept(index + 1)));
                self.launches.push(embedding(compiled.precision, &from, &y).of(name));
                y
            }
            (Op::Product(product), CompiledLayer::Product { norm, weights, bias }) => {
                let normed = self.read(name, &product.x, norm.as_ref());
                if normed.is_some() {
                    // What was written down of them is all that is read of them, but for a residual.
                    let is_done = |value: &ValueId| product.x.parts.contains(value) && product.residual != Some(*value);
                    let (done, rest) = freed.into_iter().partition(is_done);
                    self.put_values(done);
                    freed = rest;
                }
                let residual = product.residual.map(|residual| self.values[residual]);
                let epilogue = Epilogue {
                    bias: bias.map(|bias| self.at(bias)),
                    sample_bias: product.sample_bias.map(|branch| self.branch(branch)),
                    residual: residual.as_ref(),
                    scale: product.scale,
                    act: product.act,
                };
                let y = self.convolve(name, product, normed, weights, epilogue);
                normed.iter().for_each(|normed| self.put(normed));
                y
            }
            (Op::Branches { x, .. }, CompiledLayer::Product { weights, bias, .. }) => {
                let x = self.values[*x];
                let y = self.take(self.rows(weights.outputs));
                let weights = Weights { address: self.at(weights.address), ..*weights };
                let epilogue = Epilogue { bias: bias.map(|bias| self.at(bias)), ..Epilogue::NONE };
                let outputs = weights.outputs;
                self.launches
                    .push(conv(compiled.precision, &[&x], None, &weights, LINEAR, outputs, epilogue, &y).of(name));
                y
            }
            (Op::Attention { q, kv }, CompiledLayer::Attention) => {
                let Channels::Heads { pipe, heads, .. } = compiled.program.values[*q].channels else {
                    unreachable!("attention is between heads")
                };
                let ([q, kv], dim) = ([q, kv].map(|&value| self.values[value]), self.subnet.widths.0[pipe]);
                let y = self.take(Map { channels: attention::channels(heads, dim), ..q });
                if dim > 0 {
                    self.launches.push(attention(compiled.precision, [&q, &kv], heads, dim, &y).of(name));
                }
                y
            }
            // Its place is where the texts' addresses say.
            (Op::Context, CompiledLayer::Context) => {
                let height = compiled.program.values[index + 1].extent.pixels();
                Map { address: 0, samples: self.samples, height, width: 1, channels: self.kept(index + 1) }
            }
            (Op::Gate { x }, CompiledLayer::Gate) => {
                let x = self.values[*x];
                let y = self.take(Map { channels: self.kept(index + 1), ..x });
                if y.channels > 0 {
                    self.launches.push(gate(compiled.precision, &x, &y).of(name));
                }
                y
            }
            (Op::Write { x, residual, scale }, CompiledLayer::Write(norm)) => {
                let residual = residual.map(|residual| self.values[residual]);
                self.write(name, x, norm.as_ref(), residual.as_ref(), *scale)
            }
            (Op::Tokens { front, x, .. }, CompiledLayer::Tokens { positions }) => {
                let (x, front) = (self.values[*x], front.iter().map(|&vector| self.values[vector]).collect::<Vec<_>>());
                let y = self.take(Map { height: front.len() + x.pixels(), width: 1, ..x });
                let front: Vec<&Map> = front.iter().collect();
                self.launches.push(tokens(compiled.precision, &front, &x, self.at(*positions), &y).of(name));
                y
            }
            (Op::Unpatch { x, .. }, CompiledLayer::Unpatch) => {
                let (x, patches) = (self.values[*x], compiled.program.patches(index + 1));
                let (height, width, channels) = (patches.height, patches.width, self.kept(index + 1));
                let y = self.take(Map { height, width, channels, ..x });
                self.launches.push(unpatch(compiled.precision, &x, patches.front, patches.patch, &y).of(name));
                y
            }
            _ => unreachable!("layers are laid out one by one"),
        };
        self.put_values(freed);
        y
    }

    /// Channels of a value in this subnet.
    fn kept(&self, value: ValueId) -> usize {
        self.compiled.program.values[value].channels.kept(&self.subnet.widths)
    }

    /// One vector of so many channels for each sample: one sample whose pixels are the batch's.
    fn rows(&self, channels: usize) -> Map {
        Map { address: 0, samples: 1, height: self.samples, width: 1, channels }
    }

    /// Address and pitch of what a branch made.
    fn branch(&self, branch: usize) -> (u64, usize) {
        let value = self.compiled.program.branches().expect("a branch is of the branches");
        let all = self.values[value];
        let column = self.compiled.branch_columns[branch] * self.compiled.precision.bytes();
        (all.address + column as u64, all.pitch())
    }

    fn parts(&self, view: &View) -> Vec<Map> {
        view.parts.iter().map(|&part| self.values[part]).collect()
    }

    /// The view written down, where a product cannot read it as it is.
    fn read(&mut self, name: &str, view: &View, norm: Option<&CompiledNorm>) -> Option<Map> {
        let parts = self.parts(view);
        let is_nothing = parts.iter().all(|part| part.channels == 0);
        if is_nothing || norm.is_none() && view.resample.is_none() {
            return None;
        }
        let program = &*self.compiled.program;
        let resampled = format!("{name}.resample");
        let name = view.norm.as_ref().map_or(resampled.as_str(), |norm| program.layer_of(norm.scale));
        Some(self.write(name, view, norm, None, 1.0))
    }

    /// `(view + residual) * scale`
    fn write(
        &mut self,
        name: &str,
        view: &View,
        norm: Option<&CompiledNorm>,
        residual: Option<&Map>,
        scale: f32,
    ) -> Map {
        let mut parts = self.parts(view);
        let (mut affine, mut normed) = (None, None);
        match (&view.norm, norm) {
            (Some(Norm { over: Over::Pixel, eps, scale: param, .. }), Some(placed)) => {
                let norm = LayerNorm { scale: self.at(placed.scale), shift: self.at(placed.shift), eps: *eps };
                let x = parts[0];
                let y = self.take(x);
                let layer = self.compiled.program.layer_of(*param);
                self.launches.push(layer_norm(self.compiled.precision, &x, &norm, &y).of(layer));
                if !view.silu && view.resample.is_none() && residual.is_none() && scale == 1.0 {
                    return y;
                }
                normed = Some(y);
                parts = vec![y];
            }
            (_, Some(placed)) => affine = Some(self.affine(view, placed)),
            (_, None) => {}
        }
        let y = self.map(name, &parts, affine.map(|(affine, _)| affine), view, residual, scale);
        if let Some((affine, bytes)) = affine {
            self.arena.put(affine.address, bytes);
        }
        normed.iter().for_each(|normed| self.put(normed));
        y
    }

    /// Slopes and offsets of a view's norm, and their bytes.
    fn affine(&mut self, view: &View, placed: &CompiledNorm) -> (Affine, usize) {
        let norm = view.norm.as_ref().expect("placed with its norm");
        let (precision, parts) = (self.compiled.precision, self.parts(view));
        let parts: Vec<&Map> = parts.iter().collect();
        let table = match (placed.fixed, &norm.over) {
            (Some(table), _) => table,
            (None, Over::PipeGroups(pipe)) => self.subnet.tables[*pipe],
            (None, _) => unreachable!("fixed tables are placed with their norm"),
        };
        let table = Table { address: self.at(table.address), ..table };
        let params = group_norm::Norm { scale: self.at(placed.scale), shift: self.at(placed.shift), table };
        let sizes = [group_norm::sums_bytes(precision, &parts), group_norm::affine_bytes(precision, &parts)];
        let [sums, affine] = sizes.map(|bytes| self.arena.take(bytes));
        let (scratch, affine) = (Scratch { sums, counters: self.addresses.counters }, Affine { address: affine });
        let name = self.compiled.program.layer_of(norm.scale);
        let film = norm.film.map(|film| {
            let [(scale, pitch), (shift, _)] = [film, film + 1].map(|branch| self.branch(branch));
            Film { scale, shift, pitch }
        });
        self.launches.push(group_norm(precision, &parts, &params, norm.eps, film, scratch, affine).of(name));
        self.arena.put(sums, sizes[0]);
        (affine, sizes[1])
    }

    /// `(filter(act(affine(parts))) + residual) * scale`
    fn map(
        &mut self,
        name: &str,
        parts: &[Map],
        affine: Option<Affine>,
        view: &View,
        residual: Option<&Map>,
        scale: f32,
    ) -> Map {
        let filter = view.resample.as_ref().map(|by| Filter { direction: by.direction, taps: &by.filter, pad: by.pad });
        let size = |side| filter.map_or(side, |filter| filter.size(side));
        let channels = parts.iter().map(|part| part.channels).sum();
        let y = Map { height: size(parts[0].height), width: size(parts[0].width), channels, ..parts[0] };
        let (y, parts): (_, Vec<&Map>) = (self.take(y), parts.iter().collect());
        self.launches.push(
            elementwise(self.compiled.precision, &parts, affine, view.silu, filter, residual, scale, &y).of(name),
        );
        y
    }

    /// A product on what was written down of its view, or on the view's parts.
    fn convolve(
        &mut self,
        name: &str,
        product: &Product,
        normed: Option<Map>,
        weights: &Weights,
        epilogue: Epilogue,
    ) -> Map {
        let parts = normed.map_or_else(|| self.parts(&product.x), |normed| vec![normed]);
        let parts: Vec<&Map> = parts.iter().collect();
        let outputs = product.to.kept(&self.subnet.widths) / weights.groups;
        let weights = Weights { address: self.at(weights.address), ..*weights };
        let [height, width] = product.places.on([parts[0].height, parts[0].width]);
        let channels = if weights.groups == 1 { outputs } else { weights.groups * pitch(outputs) };
        let y = self.take(Map { height, width, channels, ..*parts[0] });
        let samples = self.given(product.x.parts[0]).filter(|_| normed.is_none());
        let precision = self.compiled.precision;
        if outputs > 0 {
            let places = product.places;
            self.launches.push(conv(precision, &parts, samples, &weights, places, outputs, epilogue, &y).of(name));
        }
        y
    }

    /// Of a value that a call is given, where the addresses of its samples are.
    fn given(&self, value: ValueId) -> Option<u64> {
        match value.checked_sub(1).map(|index| &self.compiled.program.layers[index].op) {
            None => Some(self.addresses.samples),
            Some(Op::Context) => Some(self.addresses.texts),
            Some(_) => None,
        }
    }

    fn at(&self, place: u64) -> u64 {
        self.addresses.weights + place
    }

    fn take(&mut self, map: Map) -> Map {
        Map { address: self.arena.take(map.bytes(self.compiled.precision)), ..map }
    }

    fn put(&mut self, map: &Map) {
        self.arena.put(map.address, map.bytes(self.compiled.precision));
    }

    /// Takes the memory of values back that it has given.
    fn put_values(&mut self, values: Vec<ValueId>) {
        for value in values {
            if self.given(value).is_none() {
                self.put(&self.values[value].clone());
            }
        }
    }
}

/// Puts one network into a block of bytes.
struct Layout<'a> {
    program: &'a Program,
    precision: Precision,
    /// By index in the spec.
    weights: &'a [Vec<f32>],
    bytes: &'a mut Vec<u8>,
}

impl Layout<'_> {
    /// What the layer that makes this value needs.
    fn layer(&mut self, value: ValueId, op: &Op) -> CompiledLayer {
        match op {
            Op::Embedding(embedding) => self.embedding(value, embedding),
            Op::Product(product) => self.product(product),
            Op::Branches { x, to } => self.branches(*x, to),
            Op::Attention { .. } => CompiledLayer::Attention,
            Op::Tokens { positions, .. } => {
                let channels = self.program.values[value].channels.kept(&self.program.spec.full());
                let positions = pack_positions(channels, &self.weights[*positions]);
                CompiledLayer::Tokens { positions: self.floats(&positions) }
            }
            Op::Unpatch { .. } => CompiledLayer::Unpatch,
            Op::Context => CompiledLayer::Context,
            Op::Gate { .. } => CompiledLayer::Gate,
            Op::Pool(_) => unreachable!("`check` has refused it"),
            Op::Write { x, .. } => CompiledLayer::Write(x.norm.as_ref().map(|norm| self.norm(norm))),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> u64 {
        place_bytes(self.bytes, bytes)
    }

    fn floats(&mut self, values: &[f32]) -> u64 {
        self.push(bytemuck::cast_slice(values))
    }

    fn embedding(&mut self, value: ValueId, Embedding { waves, class }: &Embedding) -> CompiledLayer {
        let weights = self.weights;
        let frequencies = waves.as_ref().map(|waves| waves.frequencies.values(|param| weights[param].clone()));
        let frequencies = frequencies.map(|frequencies| self.floats(&frequencies));
        let channels = self.program.values[value].channels.kept(&self.program.spec.full());
        let labels = class.map(|class| self.floats(&class.values(self.program.classes, weights, channels)));
        CompiledLayer::Embedding { frequencies, labels }
    }

    /// Packs weights by tap, input, group and output and, where there is one, a bias by group and output.
    fn place(
        &mut self,
        norm: Option<CompiledNorm>,
        weights: Weights,
        value: impl Fn(usize, usize, usize, usize) -> f32,
        bias: Option<&dyn Fn(usize, usize) -> f32>,
    ) -> CompiledLayer {
        let address = self.push(&pack(self.precision, &weights, value));
        let bias = bias.map(|bias| self.floats(&pack_bias(&weights, bias)));
        CompiledLayer::Product { norm, weights: Weights { address, ..weights }, bias }
    }

    fn product(&mut self, product: &Product) -> CompiledLayer {
        let norm = product.x.norm.as_ref().map(|norm| self.norm(norm));
        let (all, weight) = (self.weights, &self.weights[product.weight]);
        let full = self.program.spec.full();
        let (groups, outputs) = match product.to {
            Channels::Fixed(channels) => (1, channels),
            Channels::Pipe { pipe, parts } => (parts, full.0[pipe]),
            Channels::Heads { pipe, parts, heads } => (parts * heads, full.0[pipe]),
        };
        // Rows are inputs; those of heads lie as attention leaves its channels.
        let read = self.program.width(&product.x);
        let heads = match self.program.values[product.x.parts[0]].channels {
            Channels::Heads { heads, .. } => heads,
            _ => 1,
        };
        let dim = read / heads;
        let inputs = attention::channels(heads, dim);
        let weights = Weights { address: 0, kernel: product.places.kernel, inputs, outputs, groups };
        let value = |tap: usize, row: usize, group: usize, o: usize| {
            let (head, offset) = attention::place(heads, row);
            // Between an odd number of offsets and the next whole unit there is nothing.
            let place = ((tap * read + head * dim + offset) * groups + group) * outputs + o;
            if offset < dim { weight[place] } else { 0.0 }
        };
        let sum = |group: usize, o: usize| sum(all, &product.bias, group * outputs + o);
        self.place(norm, weights, value, (!product.bias.is_empty()).then_some(&sum as _))
    }

    /// All branches as one linear layer, each on whole vectors of columns.
    fn branches(&mut self, x: ValueId, to: &[Branch]) -> CompiledLayer {
        // By column: the branch, its channel among those of all parts, and how many these are.
        let mut columns = Vec::new();
        let full = self.program.spec.full();
        for (branch, Branch { to, part: (part, parts), .. }) in to.iter().enumerate() {
            let outputs = to.kept(&full);
            let column = |o| (o < outputs).then_some((branch, part * outputs + o, parts * outputs));
            columns.extend((0..pitch(outputs)).map(column));
        }
        let inputs = self.program.values[x].channels.kept(&full);
        let weights = Weights { address: 0, kernel: LINEAR.kernel, inputs, outputs: columns.len(), groups: 1 };
        let all = self.weights;
        let value = |_: usize, i: usize, _: usize, column: usize| {
            columns[column].map_or(0.0, |(branch, o, outputs)| all[to[branch].weight][i * outputs + o])
        };
        let bias = |_: usize, column: usize| {
            columns[column].map_or(0.0, |(branch, o, _): (usize, usize, usize)| sum(all, &to[branch].bias, o))
        };
        self.place(None, weights, value, Some(&bias))
    }

    fn norm(&mut self, norm: &Norm) -> CompiledNorm {
        let weights = self.weights;
        let [scale, shift] = [norm.scale, norm.shift].map(|param| {
            let mut values = weights[param].clone();
            values.resize(pitch(values.len()), 0.0);
            self.floats(&values)
        });
        let fixed = match &norm.over {
            Over::Groups(table) => Some(place_table(self.bytes, table)),
            _ => None,
        };
        CompiledNorm { scale, shift, fixed }
    }
}

/// Puts bytes behind others; gives their place.
fn place_bytes(all: &mut Vec<u8>, bytes: &[u8]) -> u64 {
    all.resize(all.len().next_multiple_of(ALIGN), 0);
    all.extend_from_slice(bytes);
    (all.len() - bytes.len()) as u64
}

fn place_table(all: &mut Vec<u8>, table: &GroupTable) -> Table {
    let (words, placed) = Table::new(table, 0);
    Table { address: place_bytes(all, bytemuck::cast_slice(&words)), ..placed }
}

/// The sum of some biases at one place.
fn sum(weights: &[Vec<f32>], biases: &[ParamId], place: usize) -> f32 {
    biases.iter().map(|&param| weights[param][place]).sum()
}

//! Inference on the CPU: a [`Program`] whose weights are packed once for all subnets, run layer by layer in fused kernels.

use super::layer_by_layer::layer_by_layer;
use super::methods::methods;
use super::program::{
    Branch, Channels, Embedding, Extent, IMAGE, Inputs, Norm, Op, Over, ParamId, Pool, Product, Program, Resample,
    Value, ValueId, View,
};
use super::sliced::Tables;
use crate::Result;
use crate::ops::Act;
use crate::ops::cpu::activation;
use crate::ops::cpu::conv::Places;
use crate::ops::cpu::fused::activate::activate;
use crate::ops::cpu::fused::attention::{self, attention};
use crate::ops::cpu::fused::conv::Conv;
use crate::ops::cpu::fused::epilogue::Epilogue;
use crate::ops::cpu::fused::gate::{self, gate};
use crate::ops::cpu::fused::group_norm::{Film, Normalisation};
use crate::ops::cpu::fused::layer_norm::layer_norm;
use crate::ops::cpu::fused::linear::{self, Linear, Output};
use crate::ops::cpu::fused::method::Method;
use crate::ops::cpu::fused::panels::pitch;
use crate::ops::cpu::fused::pool::pool;
use crate::ops::cpu::fused::resample::{copy, resample};
use crate::ops::cpu::fused::tokens::{tokens, unpatch};
use crate::ops::cpu::fused::{Kind, Map, Source, Workspace};
use crate::ops::cpu::pool::Reduce;
use crate::ops::cpu::resample::Resampler;
use crate::ops::cpu::tokens::Patches;
use crate::supernet::{Spec, Supernet, Widths};
use smallvec::SmallVec;
use std::sync::Arc;

/// A subnet of a [`Packed`] network.
#[derive(Clone, Debug)]
pub struct SubnetView {
    /// Kept channels of every pipe.
    pub widths: Widths,
    /// The groups of every pipe's norm.
    pub tables: Tables,
}

impl SubnetView {
    /// The subnet of these widths.
    pub fn new(spec: &Spec, supernet: &Supernet, widths: Widths) -> Self {
        Self { tables: Tables::new(spec, supernet, &widths), widths }
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.widths.0) + self.tables.bytes()
    }
}

/// The weights of a network as its layers want them, once for all subnets.
#[derive(Debug)]
pub struct Packed {
    program: Arc<Program>,
    /// By layer of the program.
    layers: Vec<PackedLayer>,
    /// The value of the program's branches, where in it each begins, and the elements from a sample to the next.
    branches: (Option<ValueId>, Vec<usize>, usize),
}

/// What a layer needs beside its description.
#[derive(Debug)]
enum PackedLayer {
    /// Of an embedding: the frequencies, and a row by class, the last for none; either may be empty.
    Embedding {
        frequencies: Vec<f32>,
        rows: Vec<f32>,
    },
    /// Of a product on a vector.
    Linear(Linear),
    /// Of a product on a map; the bias is empty where there is none, and there are no weights where a pipe has no channel in
    /// any subnet.
    Conv {
        view: PackedView,
        conv: Option<Conv>,
        bias: Vec<f32>,
    },
    Branches(Vec<Linear>),
    Attention,
    Context,
    Gate,
    Pool,
    Write(PackedView),
    /// Of tokens: their positions.
    Tokens(Vec<f32>),
    Unpatch(Patches),
}

/// What reading a view needs.
#[derive(Debug)]
struct PackedView {
    /// Scale and shift of its norm.
    norm: Option<(Vec<f32>, Vec<f32>)>,
    resampler: Option<Resampler>,
}

impl Packed {
    /// Packs the weights of `supernet`.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] on a device fault.
    pub fn new(program: Arc<Program>, supernet: &Supernet) -> Result<Self> {
        Self::consuming(program, supernet.clone(), None)
    }

    /// The same, but where nobody else holds them, a product's weights are gone as soon as they are packed: there are never two copies
    /// of more than those of one layer. `limit` is the bytes that all shall take, where there is a limit: see [`methods`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn consuming(program: Arc<Program>, supernet: Supernet, limit: Option<usize>) -> Result<Self> {
        let methods = methods(&program, limit);
        let mut layers = Vec::with_capacity(program.layers.len());
        layer_by_layer(&program, supernet, |index, layer, weights| {
            let packer = Packer { program: &program, weights, method: methods[index] };
            layers.push(packer.layer(index + 1, &layer.op));
        })?;
        // On whole panels.
        let (offsets, row) = program.branch_offsets(pitch);
        Ok(Self { layers, branches: (program.branches(), offsets, row), program })
    }

    /// Memory that the weights take.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(PackedLayer::bytes).sum()
    }

    /// The raw network F of a subnet on the images `x`.
    pub fn forward(
        &self,
        workspace: &mut Workspace,
        subnet: &SubnetView,
        x: &Map,
        Inputs { noise, class, context }: Inputs,
    ) -> Map {
        let program = &*self.program;
        let mut values = Values { program, image: x, made: (0..program.table()).map(|_| None).collect() };
        for (index, (layer, packed)) in program.layers.iter().zip(&self.layers).enumerate() {
            let mut call =
                Call { packed: self, workspace, subnet, values: &values, value: index + 1, name: &layer.name };
            let made = match (&layer.op, packed) {
                (Op::Embedding(embedding), PackedLayer::Embedding { frequencies, rows }) => {
                    call.embedding(embedding, frequencies, rows, noise, class)
                }
                (Op::Product(product), PackedLayer::Linear(linear)) => call.linear(product, linear),
                (Op::Product(product), PackedLayer::Conv { view, conv, bias }) => {
                    call.conv(product, view, conv.as_ref(), bias)
                }
                (Op::Branches { x, to }, PackedLayer::Branches(layers)) => {
                    call.branches(*x, layers, to.iter().map(|branch| branch.to))
                }
                (Op::Attention { q, kv }, PackedLayer::Attention) => call.attention(*q, *kv),
                (Op::Context, PackedLayer::Context) => call.context(context),
                (Op::Gate { x }, PackedLayer::Gate) => call.gate(*x),
                (Op::Pool(Pool { parts, reduce, places }), PackedLayer::Pool) => call.pool(parts, *reduce, *places),
                (Op::Write { x, residual, scale }, PackedLayer::Write(view)) => call.write(x, view, *residual, *scale),
                (Op::Tokens { front, x, .. }, PackedLayer::Tokens(positions)) => call.tokens(front, *x, positions),
                (Op::Unpatch { x, .. }, PackedLayer::Unpatch(patches)) => call.unpatch(*x, *patches),
                _ => unreachable!("layers are packed one by one"),
            };
            values.made[program.slot(index + 1)] = Some(made);
            for &value in program.freed(index) {
                workspace.arena.put(values.take(value));
            }
        }
        values.take(program.layers.len())
    }
}

impl PackedLayer {
    fn bytes(&self) -> usize {
        match self {
            Self::Embedding { frequencies, rows } => size_of_val(&**frequencies) + size_of_val(&**rows),
            Self::Linear(linear) => linear.bytes(),
            Self::Conv { view, conv, bias } => {
                view.bytes() + conv.as_ref().map_or(0, Conv::bytes) + size_of_val(&**bias)
            }
            Self::Branches(layers) => layers.iter().map(Linear::bytes).sum(),
            Self::Attention | Self::Context | Self::Gate | Self::Pool | Self::Unpatch(_) => 0,
            Self::Write(view) => view.bytes(),
            Self::Tokens(positions) => size_of_val(&**positions),
        }
    }
}

impl PackedView {
    fn bytes(&self) -> usize {
        self.norm.as_ref().map_or(0, |(scale, shift)| size_of_val(&**scale) + size_of_val(&**shift))
    }
}

/// The values of a call that are there.
struct Values<'a> {
    program: &'a Program,
    image: &'a Map,
    /// By slot; the image's is empty.
    made: Vec<Option<Map>>,
}

impl Values<'_> {
    fn of(&self, value: ValueId) -> &Map {
        match value {
            IMAGE => self.image,
            value => self.made[self.program.slot(value)].as_ref().expect("a value is read before it is freed"),
        }
    }

    /// The maps that a view reads: hardly ever more than two, and a call shall not allocate for each of its layers.
    fn parts(&self, parts: &[ValueId]) -> SmallVec<[&Map; 4]> {
        parts.iter().map(|&part| self.of(part)).collect()
    }

    fn take(&mut self, value: ValueId) -> Map {
        self.made[self.program.slot(value)].take().expect("a value is freed once")
    }
}

/// Channels of what a product makes in memory, where heads and parts lie in a way of their own.
fn stored(channels: Channels, widths: &Widths) -> usize {
    match channels {
        Channels::Heads { pipe, parts, heads } => attention::columns(parts, heads, widths.0[pipe]),
        Channels::Pipe { pipe, parts: 2 } => 2 * pitch(widths.0[pipe]),
        channels => channels.kept(widths),
    }
}

/// One layer of a call.
struct Call<'a> {
    packed: &'a Packed,
    workspace: &'a mut Workspace,
    subnet: &'a SubnetView,
    values: &'a Values<'a>,
    /// The value that the layer makes.
    value: ValueId,
    name: &'a str,
}

impl Call<'_> {
    /// Ends a part of the layer without products, which has made `y` of as many channels.
    fn ended(&mut self, part: &str, kind: Kind, y: &Map) {
        let shape = [y.height, y.width, y.channels, y.channels];
        self.workspace.ended(format_args!("{}.{part}", self.name), kind, shape, 0);
    }

    /// Ends linear layers of so many inputs and outputs on one vector a sample.
    fn linear_ended(&mut self, batch: usize, c_in: usize, c_out: usize) {
        let macs = (batch * c_in * c_out) as u64;
        self.workspace.ended(format_args!("{}", self.name), Kind::Linear, [1, 1, c_in, c_out], macs);
    }

    /// One vector of so many channels for each sample of the batch.
    fn vectors(&mut self, channels: usize) -> Map {
        self.workspace.arena.map([1, self.values.image.batch, 1, channels])
    }

    fn embedding(
        &mut self,
        embedding: &Embedding,
        frequencies: &[f32],
        rows: &[f32],
        noise: &[f32],
        class: &[Option<usize>],
    ) -> Map {
        let none = self.packed.program.classes;
        let channels = if rows.is_empty() { 2 * frequencies.len() } else { rows.len() / (none + 1) };
        let mut y = self.vectors(channels);
        let row = y.pitch();
        let cosines_first = embedding.waves.as_ref().is_some_and(|waves| waves.cosines_first);
        for ((y, &noise), class) in y.data_mut().chunks_exact_mut(row).zip(noise).zip(class) {
            y.fill(0.0);
            if !rows.is_empty() {
                let class = class.filter(|&class| class < none).unwrap_or(none);
                y[..channels].copy_from_slice(&rows[class * channels..][..channels]);
            }
            let (first, second) = y.split_at_mut(frequencies.len());
            let (sines, cosines) = if cosines_first { (second, first) } else { (first, second) };
            for ((sine, cosine), frequency) in sines.iter_mut().zip(cosines).zip(frequencies) {
                *sine += (noise * frequency).sin();
                *cosine += (noise * frequency).cos();
            }
        }
        // What the class costs by the definition, which multiplies a one-hot row.
        let inputs = embedding.class.map_or(0, |class| self.packed.program.spec.params[class.weight].shape[0]);
        self.linear_ended(noise.len(), inputs, channels);
        y
    }

    fn linear(&mut self, product: &Product, layer: &Linear) -> Map {
        let (x, channels) = (self.values.of(product.x.parts[0]), product.to.kept(&self.subnet.widths));
        let mut y = self.vectors(channels);
        let (x_pitch, y_pitch, team) = (x.pitch(), y.pitch(), &mut self.workspace.team);
        linear::run(team, x.data(), x_pitch, &[Output { layer, channels, offset: 0 }], y.data_mut(), y_pitch);
        if let Some(residual) = product.residual {
            let residual = self.values.of(residual).data();
            y.data_mut().iter_mut().zip(residual).for_each(|(y, residual)| *y = (*y + residual) * product.scale);
        }
        if let Some(act) = product.act {
            activation::in_place(act, y.data_mut());
        }
        self.linear_ended(x.height, x.channels, channels);
        y
    }

    fn branches(&mut self, x: ValueId, layers: &[Linear], to: impl Iterator<Item = Channels>) -> Map {
        let (_, offsets, row) = &self.packed.branches;
        let x = self.values.of(x);
        let output = |((layer, to), &offset): ((_, Channels), _)| Output {
            layer,
            channels: to.kept(&self.subnet.widths),
            offset,
        };
        let outputs: Vec<Output> = layers.iter().zip(to).zip(offsets).map(output).collect();
        let channels = outputs.iter().map(|output| output.channels).sum();
        let mut y = self.vectors(*row);
        linear::run(&mut self.workspace.team, x.data(), x.pitch(), &outputs, y.data_mut(), *row);
        self.linear_ended(x.height, x.channels, channels);
        y
    }

    fn conv(&mut self, product: &Product, view: &PackedView, conv: Option<&Conv>, bias: &[f32]) -> Map {
        let values = self.values;
        let parts = values.parts(&product.x.parts);
        let normalisation = self.normalisation(&product.x, view, &parts);
        let affine = normalisation.as_ref().map(|normalisation| normalisation.affine(product.x.silu));
        let source = Source { parts: &parts, affine };
        let written = self.written(&product.x, view, source);
        let whole = written.as_ref().map(|map| [map]);
        let source = whole.as_ref().map_or(source, |parts| Source { parts, affine: None });

        let [batch, height, width] = source.size();
        let [height, width] = product.places.on([height, width]);
        let widths = &self.subnet.widths;
        let mut y = self.workspace.arena.map([batch, height, width, stored(product.to, widths)]);
        let (branches, offsets, row) = &self.packed.branches;
        let bias = match (product.sample_bias, branches) {
            (Some(branch), Some(branches)) => Some((&values.of(*branches).data()[offsets[branch]..], *row)),
            _ if bias.is_empty() => None,
            _ => Some((bias, 0)),
        };
        let residual = product.residual.map(|residual| values.of(residual));
        let (c_in, c_out) = (source.channels(), product.to.kept(widths));
        let (shape, relu) = ([y.height, y.width, c_in, c_out], product.act == Some(Act::Relu));
        let epilogue = Epilogue { bias, residual, scale: product.scale, relu };
        match conv.filter(|_| c_in > 0 && c_out > 0) {
            Some(conv) => {
                conv.run(self.workspace, source, &epilogue, &mut y);
                let macs = conv.macs(c_in, batch * y.height * y.width * c_out);
                self.workspace.ended(format_args!("{}", self.name), conv.kind(), shape, macs);
            }
            // Of a block that is left out: nothing is read, or nothing made.
            None => {
                epilogue.alone(&mut y);
                self.workspace.ended(format_args!("{}", self.name), Kind::Elementwise, shape, 0);
            }
        }
        if let Some(act) = product.act.filter(|_| !relu) {
            activate(&mut self.workspace.team, act, &mut y);
            self.ended("act", Kind::Elementwise, &y);
        }
        if let Some(map) = written {
            self.workspace.arena.put(map);
        }
        if let Some(normalisation) = normalisation {
            normalisation.put(&mut self.workspace.arena);
        }
        y
    }

    fn attention(&mut self, q: ValueId, kv: ValueId) -> Map {
        let Channels::Heads { pipe, heads, .. } = self.packed.program.values[q].channels else {
            unreachable!("attention is between heads")
        };
        let (q, kv, dim) = (self.values.of(q), self.values.of(kv), self.subnet.widths.0[pipe]);
        let mut y = self.workspace.arena.map([q.batch, q.height, q.width, heads * dim]);
        if dim > 0 {
            attention(self.workspace, q, kv, heads, dim, &mut y);
        }
        // Scores, then the mixing of values.
        let macs = 2 * q.batch * heads * dim * q.height * q.width * kv.height * kv.width;
        let shape = [q.height, q.width, 3 * heads * dim, heads * dim];
        self.workspace.ended(format_args!("{}", self.name), Kind::Attention, shape, macs as u64);
        y
    }

    fn context(&mut self, context: &[f32]) -> Map {
        let Value { extent, channels } = self.packed.program.values[self.value];
        let channels = channels.kept(&self.subnet.widths);
        let mut y = self.workspace.arena.map([self.values.image.batch, extent.pixels(), 1, channels]);
        assert_eq!(context.len(), y.batch * y.height * channels, "size of the context");
        y.copy_from(context);
        self.workspace.ended(format_args!("{}", self.name), Kind::Copy, [y.height, 1, channels, channels], 0);
        y
    }

    fn gate(&mut self, x: ValueId) -> Map {
        let x = self.values.of(x);
        let channels = match self.packed.program.values[self.value].channels {
            channels @ Channels::Pipe { .. } => channels.kept(&self.subnet.widths),
            other => unreachable!("a gate makes the channels of a pipe, not {other:?}"),
        };
        let mut y = self.workspace.arena.map([x.batch, x.height, x.width, channels]);
        if channels > 0 {
            gate(self.workspace, x, &mut y);
        }
        self.ended("gate", Kind::Elementwise, &y);
        y
    }

    fn pool(&mut self, parts: &[ValueId], reduce: Reduce, places: Places) -> Map {
        let parts = self.values.parts(parts);
        let [height, width] = places.on([parts[0].height, parts[0].width]);
        let channels = parts.iter().map(|part| part.channels).sum();
        let mut y = self.workspace.arena.map([parts[0].batch, height, width, channels]);
        pool(self.workspace, &parts, reduce, places, &mut y);
        self.workspace.ended(format_args!("{}", self.name), Kind::Pool, [height, width, channels, channels], 0);
        y
    }

    fn write(&mut self, x: &View, view: &PackedView, residual: Option<ValueId>, scale: f32) -> Map {
        let parts = self.values.parts(&x.parts);
        let normalisation = self.normalisation(x, view, &parts);
        let affine = normalisation.as_ref().map(|normalisation| normalisation.affine(x.silu));
        let source = Source { parts: &parts, affine };
        let mut y = self.written(x, view, source).unwrap_or_else(|| self.copied(source));
        if let Some(normalisation) = normalisation {
            normalisation.put(&mut self.workspace.arena);
        }
        if let Some(residual) = residual {
            for (y, residual) in y.data_mut().iter_mut().zip(self.values.of(residual).data()) {
                *y = (*y + residual) * scale;
            }
            self.ended("add", Kind::Elementwise, &y);
        }
        y
    }

    fn normalisation(&mut self, x: &View, view: &PackedView, parts: &[&Map]) -> Option<Normalisation> {
        let (Some(norm), Some((scale, shift))) = (&x.norm, &view.norm) else { return None };
        if parts.iter().all(|part| part.channels == 0) {
            return None;
        }
        let table = match &norm.over {
            Over::Groups(table) => table,
            Over::PipeGroups(pipe) => self.subnet.tables.of(*pipe),
            Over::Pixel => return None,
        };
        let (branches, offsets, pitch) = &self.packed.branches;
        let film = norm.film.zip(*branches).map(|(film, branches)| {
            let of = |branch: usize| &self.values.of(branches).data()[offsets[branch]..];
            Film { scale: of(film), shift: of(film + 1), pitch: *pitch }
        });
        let normalisation = Normalisation::new(self.workspace, parts, table, scale, shift, norm.eps, film);
        let shape = [parts[0].height, parts[0].width, table.channels(), table.channels()];
        let name = self.packed.program.layer_of(norm.scale);
        self.workspace.ended(format_args!("{name}"), Kind::Norm, shape, 0);
        Some(normalisation)
    }

    /// What a view's parts become before a kernel can read them, where none can read the view as it is.
    fn written(&mut self, x: &View, view: &PackedView, source: Source) -> Option<Map> {
        match (&x.norm, &view.norm, &view.resampler) {
            (Some(Norm { over: Over::Pixel, scale: param, eps, .. }), Some((scale, shift)), _) => {
                let x = source.parts[0];
                let mut y = self.workspace.arena.map([x.batch, x.height, x.width, x.channels]);
                layer_norm(self.workspace, x, scale, shift, *eps, &mut y);
                let shape = [y.height, y.width, y.channels, y.channels];
                let name = self.packed.program.layer_of(*param);
                self.workspace.ended(format_args!("{name}"), Kind::Norm, shape, 0);
                Some(y)
            }
            (.., Some(resampler)) => {
                let [_, height, width] = source.size();
                if resampler.input() == [height, width] {
                    return Some(self.resampled(resampler, source));
                }
                // Of an image of another size than the network's.
                let resample = x.resample.as_ref().expect("what was packed of it is there");
                Some(self.resampled(&resampler_of(resample, [height, width, pitch(source.channels())]), source))
            }
            _ => None,
        }
    }

    fn tokens(&mut self, front: &[ValueId], x: ValueId, positions: &[f32]) -> Map {
        let (x, values) = (self.values.of(x), self.values);
        let mut y = self.workspace.arena.map([x.batch, front.len() + x.height * x.width, 1, x.channels]);
        let front: Vec<&Map> = front.iter().map(|&vector| values.of(vector)).collect();
        tokens(&front, x, positions, &mut y);
        self.workspace.ended(format_args!("{}", self.name), Kind::Copy, [y.height, 1, y.channels, y.channels], 0);
        y
    }

    fn unpatch(&mut self, x: ValueId, patches: Patches) -> Map {
        let x = self.values.of(x);
        let channels = x.channels / (patches.patch * patches.patch);
        let mut y = self.workspace.arena.map([x.batch, patches.height, patches.width, channels]);
        unpatch(x, patches, &mut y);
        self.workspace.ended(format_args!("{}", self.name), Kind::Copy, [y.height, y.width, channels, channels], 0);
        y
    }

    /// The source written down.
    fn copied(&mut self, source: Source) -> Map {
        let [batch, height, width] = source.size();
        let mut y = self.workspace.arena.map([batch, height, width, source.channels()]);
        copy(self.workspace, source, &mut y);
        self.ended("copy", Kind::Copy, &y);
        y
    }

    fn resampled(&mut self, resampler: &Resampler, source: Source) -> Map {
        let whole = match source {
            Source { parts: [_], affine: None } => None,
            source => Some(self.copied(source)),
        };
        let x = whole.as_ref().unwrap_or(source.parts[0]);
        let [height, width] = resampler.output();
        let mut y = self.workspace.arena.map([x.batch, height, width, x.channels]);
        resample(self.workspace, resampler, x, &mut y);
        self.ended("resample", Kind::Resample, &y);
        if let Some(whole) = whole {
            self.workspace.arena.put(whole);
        }
        y
    }
}

/// A resampling of maps of this size.
fn resampler_of(resample: &Resample, size: [usize; 3]) -> Resampler {
    Resampler::new(resample.direction, size, &resample.filter, resample.pad, resample.direction.gain())
}

/// Packs one network.
struct Packer<'a> {
    program: &'a Program,
    /// Of the layer, where it is a convolution.
    method: Method,
    /// By index in the spec.
    weights: &'a [Vec<f32>],
}

impl Packer<'_> {
    fn layer(&self, value: ValueId, op: &Op) -> PackedLayer {
        match op {
            Op::Embedding(embedding) => self.embedding(value, embedding),
            Op::Product(product) => match self.program.values[product.x.parts[0]].extent {
                Extent::Vector => PackedLayer::Linear(self.linear(product)),
                Extent::Map { .. } => self.conv(product),
            },
            Op::Branches { to, .. } => PackedLayer::Branches(to.iter().map(|branch| self.branch(branch)).collect()),
            Op::Attention { .. } => PackedLayer::Attention,
            Op::Context => PackedLayer::Context,
            Op::Gate { .. } => PackedLayer::Gate,
            Op::Pool(_) => PackedLayer::Pool,
            Op::Write { x, .. } => PackedLayer::Write(self.view(x)),
            Op::Tokens { positions, .. } => PackedLayer::Tokens(self.weights[*positions].clone()),
            Op::Unpatch { .. } => PackedLayer::Unpatch(self.program.patches(value)),
        }
    }

    fn embedding(&self, value: ValueId, Embedding { waves, class }: &Embedding) -> PackedLayer {
        let waves = waves.as_ref();
        let frequencies = waves.map_or(vec![], |waves| waves.frequencies.values(|param| self.weights[param].clone()));
        let channels = self.program.values[value].channels.kept(&self.program.spec.full());
        let rows = class.map_or(vec![], |class| class.values(self.program.classes, self.weights, channels));
        PackedLayer::Embedding { frequencies, rows }
    }

    /// The sum of these biases.
    fn bias(&self, params: &[ParamId]) -> Vec<f32> {
        let Some((first, more)) = params.split_first() else { return Vec::new() };
        let mut bias = self.weights[*first].clone();
        for &more in more {
            bias.iter_mut().zip(&self.weights[more]).for_each(|(bias, more)| *bias += more);
        }
        bias
    }

    fn linear(&self, product: &Product) -> Linear {
        let weights = &self.weights[product.weight];
        let (c_in, c_out) = (self.program.width(&product.x), product.to.kept(&self.program.spec.full()));
        Linear::new([c_in, c_out], &self.bias(&product.bias), |i, o| weights[i * c_out + o])
    }

    fn branch(&self, Branch { weight, bias, part: (part, parts), to }: &Branch) -> Linear {
        let c_in = self.program.spec.params[*weight].shape[0];
        let c_out = to.kept(&self.program.spec.full());
        let weights = &self.weights[*weight];
        let bias = &self.bias(bias)[part * c_out..][..c_out];
        Linear::new([c_in, c_out], bias, |i, o| weights[(i * parts + part) * c_out + o])
    }

    fn view(&self, view: &View) -> PackedView {
        assert!(view.norm.is_some() || !view.silu, "the CPU activates on the way in what it normalises there");
        let of = |norm: &Norm| (self.weights[norm.scale].clone(), self.weights[norm.shift].clone());
        let resampler = view.resample.as_ref().map(|resample| {
            let Extent::Map { height, width } = self.program.values[view.parts[0]].extent else {
                unreachable!("a vector has no pixels to resample")
            };
            resampler_of(resample, [height, width, pitch(self.program.width(view))])
        });
        PackedView { norm: view.norm.as_ref().map(of), resampler }
    }

    fn conv(&self, product: &Product) -> PackedLayer {
        let view = self.view(&product.x);
        let (weights, shape) = (&self.weights[product.weight], &self.program.spec.params[product.weight].shape);
        let bias = self.bias(&product.bias);
        let from = self.program.values[product.x.parts[0]].channels;
        let (conv, mut bias) = match (from, product.to) {
            _ if weights.is_empty() => (None, bias),
            (_, Channels::Heads { .. } | Channels::Pipe { parts: 2, .. }) => {
                let (c_in, outputs) = (shape[0], product.to.kept(&self.program.spec.full()));
                // Parts and heads lie in panels, the last of each filled up with zeros.
                let mut places = vec![None; stored(product.to, &self.program.spec.full())];
                for output in 0..outputs {
                    let column = match product.to {
                        Channels::Heads { parts, heads, .. } => {
                            let dim = outputs / (parts * heads);
                            attention::column(parts, heads, output / dim / heads, output / dim % heads, output % dim)
                        }
                        _ => gate::column(output / (outputs / 2), output % (outputs / 2)),
                    };
                    places[column] = Some(output);
                }
                let value = |_, i: usize, column: usize| places[column].map_or(0.0, |at| weights[i * outputs + at]);
                let conv = Conv::new(Method::Direct, Places::same([1, 1]), [c_in, places.len()], value);
                let at = |place: &Option<usize>| place.map_or(0.0, |place| bias[place]);
                (Some(conv), if bias.is_empty() { bias } else { places.iter().map(at).collect() })
            }
            (Channels::Heads { heads, .. }, _) => {
                let (dim, c_out) = (shape[1], shape[2]);
                let value = |_, i: usize, o: usize| {
                    let (head, offset) = attention::head_and_offset(heads, i);
                    weights[(head * dim + offset) * c_out + o]
                };
                (Some(Conv::new(Method::Direct, Places::same([1, 1]), [heads * dim, c_out], value)), bias)
            }
            _ => {
                let (c_in, c_out) = (self.program.width(&product.x), product.to.kept(&self.program.spec.full()));
                let value = |tap, i, o| weights[(tap * c_in + i) * c_out + o];
                (Some(Conv::new(self.method, product.places, [c_in, c_out], value)), bias)
            }
        };
        // On whole panels.
        bias.resize(pitch(bias.len()), 0.0);
        PackedLayer::Conv { view, conv, bias }
    }
}

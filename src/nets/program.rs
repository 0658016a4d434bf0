//! A network as data: a list of fused layers over values.
//!
//! A backbone writes it once, with a [`super::builder::Builder`], and whoever needs to know what the network computes reads it:
//! [`super::on_tape`] for gradients, [`super::on_cpu`] and [`super::on_gpu`] for inference, and the [`Spec`] that the builder
//! writes beside it for everything that treats the network as a table of parameters. Layers are fused by construction: what a
//! layer reads is a [`View`], which normalises, activates, concatenates and resamples on the way in; bias, residual and
//! scale are part of the layer that makes the sum. So no reader has to find the fusions again.

use crate::ImageShape;
use crate::ops::Act;
use crate::ops::cpu::conv::Places;
use crate::ops::cpu::group_norm::GroupTable;
use crate::ops::cpu::pool::Reduce;
use crate::ops::cpu::resample::Direction;
use crate::ops::cpu::tokens::Patches;
use crate::supernet::{Spec, Widths};
use std::f32::consts::TAU;
use std::sync::Arc;

/// Index into [`Program::values`].
pub type ValueId = usize;
/// Index into [`Spec::params`].
pub type ParamId = usize;
/// Index into [`Spec::pipes`].
pub type PipeId = usize;

/// The value that the image is.
pub const IMAGE: ValueId = 0;

/// A network.
#[derive(Debug)]
pub struct Program {
    /// Its parameters and pipes.
    pub spec: Spec,
    /// The size of its input and its output.
    pub image: ImageShape,
    /// Classes; 0 for an unconditional network.
    pub classes: usize,
    /// Layer `i` makes value `i + 1`, and reads earlier ones only. The last makes the network's output.
    pub layers: Vec<Layer>,
    /// The image, then what each layer makes.
    pub values: Vec<Value>,
    /// By layer: the values that nobody reads after it, but for the image and the output.
    freed: Vec<Vec<ValueId>>,
    /// By value: its place in a table of the values that are there at once.
    slots: Vec<usize>,
}

/// What a call is given beside its images, sample after sample.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What the network is told of each noise level: c_noise.
    pub noise: &'a [f32],
    /// The classes; `None` is the unconditional call.
    pub class: &'a [Option<usize>],
    /// `[batch, tokens, channels]` of a network that reads an [`Op::Context`]; empty for another.
    pub context: &'a [f32],
}

impl Inputs<'_> {
    /// Those of a network that reads none of them.
    pub const NONE: Self = Self { noise: &[], class: &[], context: &[] };
}

/// What a layer makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its size beside its channels.
    pub extent: Extent,
    /// Its channels.
    pub channels: Channels,
}

/// The size of a value beside its channels, for one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// One vector of channels.
    Vector,
    /// A map of pixels.
    Map {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
}

/// The channels of a value, or of what a weight reads or makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// As many in every subnet.
    Fixed(usize),
    /// Those of a pipe, `parts` times side by side.
    Pipe {
        /// The pipe.
        pipe: PipeId,
        /// How often.
        parts: usize,
    },
    /// The offsets of a pipe of attention, in each of `heads` heads, `parts` times: three for queries, keys and values side
    /// by side.
    Heads {
        /// The pipe of the offsets.
        pipe: PipeId,
        /// How often.
        parts: usize,
        /// Heads.
        heads: usize,
    },
}

impl Channels {
    /// The channels of a pipe, once.
    pub fn of(pipe: PipeId) -> Self {
        Self::Pipe { pipe, parts: 1 }
    }

    /// The pipe that they shrink with.
    pub fn pipe(self) -> Option<PipeId> {
        match self {
            Self::Fixed(_) => None,
            Self::Pipe { pipe, .. } | Self::Heads { pipe, .. } => Some(pipe),
        }
    }

    /// How many there are in the subnet of these widths.
    pub fn kept(self, widths: &Widths) -> usize {
        match self {
            Self::Fixed(channels) => channels,
            Self::Pipe { pipe, parts } => parts * widths.0[pipe],
            Self::Heads { pipe, parts, heads } => parts * heads * widths.0[pipe],
        }
    }
}

/// A layer and its name.
#[derive(Debug)]
pub struct Layer {
    /// That of its weight, where it has one.
    pub name: String,
    /// What it computes.
    pub op: Op,
}

/// What a layer computes.
#[derive(Debug)]
pub enum Op {
    /// The noise level as sines and cosines, and the class: a vector that reads no value.
    Embedding(Embedding),
    /// A convolution or a linear layer.
    Product(Product),
    /// Linear layers on one vector, all at once: what [`Product::sample_bias`] and [`Norm::film`] read. Its value holds them one after the
    /// other; how far apart is the reader's affair.
    Branches {
        /// The vector.
        x: ValueId,
        /// The layers.
        to: Vec<Branch>,
    },
    /// `softmax(q k' / sqrt(dim)) v` in each head (Vaswani et al. 2017, eq. 1) on values of [`Channels::Heads`], a query for each pixel of
    /// the one and a key and a value for each of the other.
    Attention {
        /// Its first part has the queries.
        q: ValueId,
        /// Its last two parts have the keys and the values; the same value, of three parts, where pixels attend to each other.
        kv: ValueId,
    },
    /// What an image is told by beside its class: a map of one column, a token a row.
    Context,
    /// `a * gelu(b)` of the two parts a, b of a pipe (GEGLU, Shazeer 2020).
    Gate {
        /// Both parts.
        x: ValueId,
    },
    /// The largest values or the means of neighbours.
    Pool(Pool),
    /// `(x + residual) * scale`: a view written down.
    Write {
        /// What is written.
        x: View,
        /// Added to it.
        residual: Option<ValueId>,
        /// A factor on the sum.
        scale: f32,
    },
    /// A sequence of tokens: vectors, then the pixels of a map row by row, plus positions. Its value is a map of one column.
    Tokens {
        /// The vectors, one token each.
        front: Vec<ValueId>,
        /// The map.
        x: ValueId,
        /// `[tokens, channels]`: added.
        positions: ParamId,
    },
    /// The last tokens as an image, each a square of `patch * patch` pixels whose channels follow each other row by row.
    Unpatch {
        /// The tokens.
        x: ValueId,
        /// Side of a square.
        patch: usize,
    },
}

/// `waves + class`, either of which may be missing.
#[derive(Debug)]
pub struct Embedding {
    /// The noise level.
    pub waves: Option<Waves>,
    /// The class.
    pub class: Option<ClassRows>,
}

/// `(sin(noise f), cos(noise f))`
#[derive(Debug)]
pub struct Waves {
    /// Where the frequencies f come from.
    pub frequencies: Frequencies,
    /// Whether `(cos, sin)` is meant.
    pub cosines_first: bool,
}

/// A vector for each class: `scale * row + bias`.
#[derive(Clone, Copy, Debug)]
pub struct ClassRows {
    /// `[rows, channels]`: a row for each class, and perhaps one more for none; without it the bias is all there is of none.
    pub weight: ParamId,
    /// `[channels]`
    pub bias: Option<ParamId>,
    /// A factor on a row.
    pub scale: f32,
}

impl ClassRows {
    /// The vectors themselves, the last for none: `[classes + 1, channels]`, given the values of parameters.
    pub fn values(&self, classes: usize, weights: &[Vec<f32>], channels: usize) -> Vec<f32> {
        let zeros = vec![0.0; channels];
        let (rows, bias) = (&weights[self.weight], self.bias.map_or(&zeros, |bias| &weights[bias]));
        let none = (rows.len() == classes * channels).then_some(&zeros);
        let rows = rows.chunks_exact(channels).chain(none.map(Vec::as_slice));
        rows.flat_map(|row| row.iter().zip(bias).map(|(row, bias)| self.scale * row + bias)).collect()
    }
}

/// Frequencies of [`Waves`].
#[derive(Debug)]
pub enum Frequencies {
    /// These.
    Fixed(Vec<f32>),
    /// 2 pi times those of the checkpoint.
    Param(ParamId),
}

impl Frequencies {
    /// The frequencies themselves, given the values of a parameter.
    pub fn values(&self, of: impl FnOnce(ParamId) -> Vec<f32>) -> Vec<f32> {
        match self {
            Self::Fixed(frequencies) => frequencies.clone(),
            Self::Param(param) => of(*param).into_iter().map(|frequency| TAU * frequency).collect(),
        }
    }
}

/// The weight and the bias of a linear layer or a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    /// `[in, out]`, or `[rows, columns, in, out]`.
    pub weight: ParamId,
    /// `[out]`.
    pub bias: Option<ParamId>,
    /// What it makes.
    pub to: Channels,
}

/// A layer of [`Op::Branches`], or one of the equal parts that its outputs fall into.
#[derive(Clone, Debug)]
pub struct Branch {
    /// `[in, (parts,) out]`.
    pub weight: ParamId,
    /// `[(parts,) out]`: added up.
    pub bias: Vec<ParamId>,
    /// Which part, of how many.
    pub part: (usize, usize),
    /// What it makes.
    pub to: Channels,
}

/// `act((x * weight + bias + sample_bias + residual) * scale)`: a convolution of a map, or a linear layer of a vector.
#[derive(Clone, Debug)]
pub struct Product {
    /// What it reads.
    pub x: View,
    /// The weight.
    pub weight: ParamId,
    /// What it makes.
    pub to: Channels,
    /// Where the kernel stands, which has one tap for a linear layer.
    pub places: Places,
    /// Added up.
    pub bias: Vec<ParamId>,
    /// A branch of the network's [`Op::Branches`], which is a bias for each sample.
    pub sample_bias: Option<usize>,
    /// Added before the scale.
    pub residual: Option<ValueId>,
    /// A factor on the sum.
    pub scale: f32,
    /// What follows.
    pub act: Option<Act>,
}

impl Product {
    /// `x * weight + bias`, with a kernel of these rows and columns and as many zeros around the map as keep its size.
    pub fn new(x: impl Into<View>, layer: Dense, kernel: [usize; 2]) -> Self {
        Self {
            x: x.into(),
            weight: layer.weight,
            to: layer.to,
            places: Places::same(kernel),
            bias: layer.bias.into_iter().collect(),
            sample_bias: None,
            residual: None,
            scale: 1.0,
            act: None,
        }
    }
}

/// What a window over a map makes of its pixels, channel by channel. Pixels beyond the map do not count.
#[derive(Clone, Debug)]
pub struct Pool {
    /// What is read: values of one size, side by side.
    pub parts: Vec<ValueId>,
    /// What is made of the pixels.
    pub reduce: Reduce,
    /// Where the window stands.
    pub places: Places,
}

/// How a layer reads: parts side by side, then the norm, the activation, the resampling. It costs nothing by itself.
#[derive(Clone, Debug)]
pub struct View {
    /// Values of one size.
    pub parts: Vec<ValueId>,
    /// Normalised by.
    pub norm: Option<Norm>,
    /// Whether SiLU follows.
    pub silu: bool,
    /// Resampled by.
    pub resample: Option<Resample>,
}

impl From<ValueId> for View {
    /// The value as it is.
    fn from(value: ValueId) -> Self {
        Self { parts: vec![value], norm: None, silu: false, resample: None }
    }
}

impl View {
    /// Its first values with their channels side by side.
    pub fn of(parts: &[ValueId]) -> Self {
        Self { parts: parts.to_vec(), norm: None, silu: false, resample: None }
    }

    /// The same, normalised.
    pub fn norm(self, norm: Norm) -> Self {
        Self { norm: Some(norm), ..self }
    }

    /// The same, then SiLU.
    pub fn silu(self) -> Self {
        Self { silu: true, ..self }
    }

    /// The same, then resampled, where there is something to resample by.
    pub fn resampled(self, resample: Option<Resample>) -> Self {
        Self { resample, ..self }
    }
}

/// `(x - mean) / sqrt(variance + eps) * scale + shift`
#[derive(Clone, Debug)]
pub struct Norm {
    /// `[channels]`: on what is normalised.
    pub scale: ParamId,
    /// `[channels]`: added then.
    pub shift: ParamId,
    /// What a mean and a variance are over.
    pub over: Over,
    /// Added to the variance.
    pub eps: f32,
    /// `y (1 + f) + g` of what comes out (FiLM, Perez et al. 2018): f is this branch, g the next.
    pub film: Option<usize>,
}

/// What shares a mean and a variance.
#[derive(Clone, Debug)]
pub enum Over {
    /// All pixels and some channels (GroupNorm, Wu and He 2018), the same in every subnet: the residual stream's.
    Groups(Arc<GroupTable>),
    /// The same of a pipe, whose groups depend on what is kept.
    PipeGroups(PipeId),
    /// The channels of a pixel (LayerNorm, Ba et al. 2016).
    Pixel,
}

/// EDM's resampling by 2 (Karras et al. 2022): as [`crate::ops::cpu::resample`] defines it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resample {
    /// Which way.
    pub direction: Direction,
    /// The taps of the 1-D filter.
    pub filter: Arc<[f32]>,
    /// Zeros around the map.
    pub pad: usize,
}

impl Resample {
    /// Two copies of each row and of each column.
    pub fn nearest_up() -> Self {
        Self { direction: Direction::Up, filter: [1.0, 1.0].into(), pad: 0 }
    }

    /// The side of the output for an input of this side.
    pub fn size(&self, side: usize) -> usize {
        self.direction.size(side, self.filter.len(), self.pad)
    }
}

impl Extent {
    /// What a resampling makes of it.
    pub fn resampled(self, resample: Option<&Resample>) -> Self {
        match (self, resample) {
            (Self::Map { height, width }, Some(resample)) => {
                Self::Map { height: resample.size(height), width: resample.size(width) }
            }
            (extent, _) => extent,
        }
    }

    /// The places of a kernel on it.
    pub fn at(self, places: Places) -> Self {
        match self {
            Self::Vector => Self::Vector,
            Self::Map { height, width } => {
                let [height, width] = places.on([height, width]);
                Self::Map { height, width }
            }
        }
    }

    /// Rows; 1 for a vector.
    pub fn height(self) -> usize {
        match self {
            Self::Vector => 1,
            Self::Map { height, .. } => height,
        }
    }

    /// Pixels; 1 for a vector.
    pub fn pixels(self) -> usize {
        match self {
            Self::Vector => 1,
            Self::Map { height, width } => height * width,
        }
    }
}

impl Op {
    /// The values that it reads, some perhaps twice. `branches` is the value of the network's [`Op::Branches`].
    pub fn reads(&self, branches: Option<ValueId>) -> Vec<ValueId> {
        let mut reads = Vec::new();
        if let Some(view) = self.view() {
            reads.extend(&view.parts);
            reads.extend(view.norm.as_ref().and_then(|norm| norm.film).and(branches));
        }
        match self {
            Self::Embedding(_) | Self::Context => {}
            Self::Attention { q, kv } => reads.extend([*q, *kv]),
            Self::Product(Product { residual, sample_bias, .. }) => {
                reads.extend(residual);
                reads.extend(sample_bias.and(branches));
            }
            Self::Write { residual, .. } => reads.extend(residual),
            Self::Branches { x, .. } | Self::Gate { x } | Self::Unpatch { x, .. } => reads.push(*x),
            Self::Tokens { front, x, .. } => reads.extend(front.iter().chain([x])),
            Self::Pool(Pool { parts, .. }) => reads.extend(parts),
        }
        reads
    }

    /// The view that it reads, if it reads one.
    pub fn view(&self) -> Option<&View> {
        match self {
            Self::Product(Product { x, .. }) | Self::Write { x, .. } => Some(x),
            _ => None,
        }
    }
}

impl Program {
    /// Tokens and channels of the context that it is told of a sample; None of a network that reads none.
    pub fn context(&self) -> Option<[usize; 2]> {
        let index = self.layers.iter().position(|layer| matches!(layer.op, Op::Context))?;
        let Value { extent, channels } = self.values[index + 1];
        Some([extent.pixels(), channels.kept(&self.spec.full())])
    }

    /// The norms over pipes, by the pipe and the name of the layer.
    pub fn pipe_norms(&self) -> impl Iterator<Item = (PipeId, &str)> {
        let views = self.layers.iter().filter_map(|layer| match &layer.op {
            Op::Product(product) => Some(&product.x),
            Op::Write { x, .. } => Some(x),
            _ => None,
        });
        views.filter_map(|view| match view.norm.as_ref()? {
            Norm { over: Over::PipeGroups(pipe), scale, .. } => Some((*pipe, self.layer_of(*scale))),
            _ => None,
        })
    }

    /// Channels of its output.
    pub fn output_channels(&self) -> usize {
        self.values.last().map_or(0, |value| value.channels.kept(&self.spec.full()))
    }

    /// Elements of that context; 0 of a network that reads none.
    pub fn context_elements(&self) -> usize {
        self.context().map_or(0, |[tokens, channels]| tokens * channels)
    }

    /// What the rows and columns of its images are multiples of: how much larger they are than its smallest map.
    pub fn steps_of_size(&self) -> usize {
        let rows = |value: &Value| match value.extent {
            Extent::Map { height, width } if width > 1 => height,
            _ => self.image.height,
        };
        self.image.height / self.values.iter().map(rows).min().unwrap_or(1).max(1)
    }

    /// A network of these layers.
    pub(super) fn new(spec: Spec, image: ImageShape, classes: usize, layers: Vec<Layer>, values: Vec<Value>) -> Self {
        let mut program = Self { spec, image, classes, layers, values, freed: Vec::new(), slots: Vec::new() };
        let branches = program.branches();
        let mut last = vec![None; program.values.len()];
        for (index, layer) in program.layers.iter().enumerate() {
            layer.op.reads(branches).into_iter().for_each(|value| last[value] = Some(index));
        }
        program.freed = vec![Vec::new(); program.layers.len()];
        for (value, last) in last.iter().enumerate().skip(1) {
            if let Some(last) = last {
                program.freed[*last].push(value);
            }
        }
        program.slots = vec![0; program.values.len()];
        let (mut free, mut used) = (Vec::new(), 1);
        for (index, freed) in program.freed.iter().enumerate() {
            program.slots[index + 1] = free.pop().unwrap_or_else(|| {
                used += 1;
                used - 1
            });
            free.extend(freed.iter().map(|&value| program.slots[value]));
        }
        program
    }

    /// The value of its [`Op::Branches`], if it has such a layer.
    pub fn branches(&self) -> Option<ValueId> {
        self.layers.iter().position(|layer| matches!(layer.op, Op::Branches { .. })).map(|index| index + 1)
    }

    /// Where each of its branches begins where each takes `pitch` of its channels at full width, and where the last ends.
    pub fn branch_offsets(&self, pitch: impl Fn(usize) -> usize) -> (Vec<usize>, usize) {
        let (mut offsets, mut end) = (Vec::new(), 0);
        let full = self.spec.full();
        for layer in &self.layers {
            let Op::Branches { to, .. } = &layer.op else { continue };
            for branch in to {
                offsets.push(end);
                end += pitch(branch.to.kept(&full));
            }
        }
        (offsets, end)
    }

    /// The values that nobody reads after layer `index`; neither the image nor the output is ever among them.
    pub fn freed(&self, index: usize) -> &[ValueId] {
        &self.freed[index]
    }

    /// The place of a value in a table of [`Self::table`] values: no two that are there at once have the same.
    pub fn slot(&self, value: ValueId) -> usize {
        self.slots[value]
    }

    /// The values that are there at once, at most, the image among them.
    pub fn table(&self) -> usize {
        self.slots.iter().max().map_or(0, |slot| slot + 1)
    }

    /// The size of what a view reads, resampled.
    pub fn extent(&self, view: &View) -> Extent {
        self.values[view.parts[0]].extent.resampled(view.resample.as_ref())
    }

    /// Channels that a view reads, at full width.
    pub fn width(&self, view: &View) -> usize {
        let full = self.spec.full();
        view.parts.iter().map(|&part| self.values[part].channels.kept(&full)).sum()
    }

    /// How an [`Op::Unpatch`] that makes this value reads its tokens.
    pub(super) fn patches(&self, value: ValueId) -> Patches {
        let (Op::Unpatch { x, patch }, Extent::Map { height, width }) =
            (&self.layers[value - 1].op, self.values[value].extent)
        else {
            unreachable!("only an image is made of tokens")
        };
        let image = height / patch * (width / patch);
        Patches { front: self.values[*x].extent.pixels() - image, patch: *patch, height, width }
    }

    /// The name of a parameter's layer.
    pub fn layer_of(&self, param: ParamId) -> &str {
        let name = &self.spec.params[param].name;
        name.rsplit_once('.').map_or(name, |(layer, _)| layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nets::Backbone;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Networks of every family and of many shapes.
    fn programs() -> impl Strategy<Value = Program> {
        let levels = prop::collection::vec(1usize..3, 1..4);
        (levels, 1usize..3, any::<[bool; 4]>(), 0usize..4, 0..3).prop_map(
            |(levels, blocks, [fourier, aux, wide, deep], classes, family)| {
                let side = 4 << (levels.len() - 1);
                let attn_resolutions = if deep { vec![4] } else { vec![side] };
                let config = match family {
                    0 => serde_json::json!({
                        "arch": "song-unet", "img_resolution": side, "img_channels": 3, "label_dim": classes,
                        "model_channels": 8, "channel_mult": levels, "num_blocks": blocks,
                        "attn_resolutions": attn_resolutions,
                        "embedding_type": if fourier { "fourier" } else { "positional" },
                        "encoder_type": if aux { "residual" } else { "standard" }, "decoder_type": "standard",
                        "resample_filter": if wide { vec![1.0, 3.0, 3.0, 1.0] } else { vec![1.0, 1.0] },
                    }),
                    1 => serde_json::json!({
                        "arch": "adm", "img_resolution": side, "img_channels": 3, "label_dim": classes,
                        "model_channels": if wide { 128 } else { 8 }, "channel_mult": levels, "num_blocks": blocks,
                        "attn_resolutions": attn_resolutions,
                    }),
                    _ => serde_json::json!({
                        "arch": "u-vit", "img_size": side, "patch_size": if fourier { 2 } else { 4 }, "in_chans": 3,
                        "embed_dim": 24, "depth": 2 * levels.len() - 2, "num_heads": blocks, "mlp_ratio": 4,
                        "qkv_bias": wide, "mlp_time_embed": aux, "conv": deep,
                        "num_classes": if classes > 1 { classes as i64 } else { -1 },
                    }),
                };
                serde_json::from_value::<Backbone>(config).unwrap().program().unwrap()
            },
        )
    }

    /// The values that each layer reads.
    fn reads(program: &Program) -> Vec<BTreeSet<ValueId>> {
        let branches = program.branches();
        program.layers.iter().map(|layer| layer.op.reads(branches).into_iter().collect()).collect()
    }

    proptest! {
        #[test]
        fn every_value_is_read_and_freed_once_after_its_last_reader(program in programs()) {
            let reads = reads(&program);
            let output = program.layers.len();
            for (value, _) in program.values.iter().enumerate() {
                let readers: Vec<usize> = (0..output).filter(|&layer| reads[layer].contains(&value)).collect();
                let freed: Vec<usize> = (0..output).filter(|&layer| program.freed(layer).contains(&value)).collect();
                prop_assert_eq!(readers.is_empty(), value == output, "value {}", value);
                let wanted = readers.last().filter(|_| value != IMAGE);
                prop_assert_eq!(freed.iter().collect::<Vec<_>>(), wanted.into_iter().collect::<Vec<_>>(), "value {}", value);
            }
        }

        #[test]
        fn no_two_values_that_are_there_at_once_have_the_same_slot(program in programs()) {
            let mut table = vec![None; program.table()];
            table[program.slot(IMAGE)] = Some(IMAGE);
            for layer in 0..program.layers.len() {
                let made = layer + 1;
                prop_assert_eq!(table[program.slot(made)].replace(made), None, "{}", &program.layers[layer].name);
                for &value in program.freed(layer) {
                    prop_assert_eq!(table[program.slot(value)].take(), Some(value));
                }
            }
        }

        #[test]
        fn a_layer_reads_only_what_was_made_before_it(program in programs()) {
            for (layer, reads) in reads(&program).into_iter().enumerate() {
                prop_assert!(reads.into_iter().all(|value| value <= layer), "{}", program.layers[layer].name);
            }
        }

        #[test]
        fn a_weight_is_as_large_as_what_it_reads_and_makes_in_every_subnet(program in programs()) {
            let full = program.spec.full();
            for widths in [full.clone(), Widths(full.0.iter().map(|width| width.div_ceil(2)).collect())] {
                let elements = |param: ParamId| {
                    program.spec.sliced_shape(&program.spec.params[param], &widths).iter().product::<usize>()
                };
                for layer in &program.layers {
                    let Op::Product(product) = &layer.op else { continue };
                    let kept = |part: &ValueId| program.values[*part].channels.kept(&widths);
                    let (from, to) = (product.x.parts.iter().map(kept).sum::<usize>(), product.to.kept(&widths));
                    prop_assert_eq!(elements(product.weight), product.places.taps() * from * to, "{}", &layer.name);
                    prop_assert!(product.bias.iter().all(|&bias| elements(bias) == to), "{}", &layer.name);
                }
            }
        }

        #[test]
        fn names_are_unique_and_every_parameter_belongs_to_a_layer(program in programs()) {
            let params: BTreeSet<&str> = program.spec.params.iter().map(|param| param.name.as_str()).collect();
            prop_assert_eq!(params.len(), program.spec.params.len());
            let layers: BTreeSet<&str> = program.layers.iter().map(|layer| layer.name.as_str()).collect();
            prop_assert_eq!(layers.len(), program.layers.len());
            let mut used = BTreeSet::new();
            for layer in &program.layers {
                match &layer.op {
                    Op::Embedding(Embedding { waves, class }) => {
                        used.extend(class.iter().flat_map(|class| class.bias.into_iter().chain([class.weight])));
                        if let Some(Waves { frequencies: Frequencies::Param(param), .. }) = waves {
                            used.insert(*param);
                        }
                    }
                    Op::Product(product) => {
                        used.insert(product.weight);
                        used.extend(&product.bias);
                    }
                    Op::Branches { to, .. } => {
                        to.iter().for_each(|branch| used.extend(branch.bias.iter().chain([&branch.weight])));
                    }
                    Op::Tokens { positions, .. } => {
                        used.insert(*positions);
                    }
                    Op::Attention { .. }
                    | Op::Context
                    | Op::Gate { .. }
                    | Op::Pool(_)
                    | Op::Write { .. }
                    | Op::Unpatch { .. } => {}
                }
                used.extend(layer.op.view().and_then(|view| view.norm.as_ref()).iter().flat_map(|norm| [norm.scale, norm.shift]));
            }
            prop_assert_eq!(used.len(), program.spec.params.len());
        }
    }
}

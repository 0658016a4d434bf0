//! Writes a [`Program`] and its [`Spec`], by calls that read like a forward pass.
//!
//! A parameter's shape and the axes that shrink with a pipe follow from the [`Channels`] that it reads and makes: forward
//! pass and table cannot disagree.

use super::program::{
    Branch, Channels, Dense, Embedding, Extent, IMAGE, Layer, Norm, Op, Over, ParamId, PipeId, Pool, Product, Program,
    Value, ValueId, View,
};
use crate::ImageShape;
use crate::ops::cpu::conv::Places;
use crate::ops::cpu::group_norm::GroupTable;
use crate::supernet::spec::{Init, Param, Pipe, Public, Role, Slice, Spec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A program under way.
#[derive(Debug)]
pub struct Builder {
    spec: Spec,
    image: ImageShape,
    classes: usize,
    layers: Vec<Layer>,
    values: Vec<Value>,
    /// Widths of pipes that are narrower than their block, by name.
    pipe_widths: BTreeMap<String, usize>,
}

/// What there is to say of a layer's parameters beside their channels.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// How they are drawn before training.
    pub draw: Draw,
    /// Output positions of an image.
    pub uses: usize,
    /// Whether there is a bias.
    pub bias: bool,
}

/// How a weight and its bias are drawn.
#[derive(Clone, Copy, Debug)]
pub enum Draw {
    /// Xavier's initialisation times this; the bias is zero.
    Xavier(f64),
    /// Kaiming's uniform one times this, the bias like the weight.
    Kaiming(f64),
    /// Normal of this standard deviation; the bias is zero.
    Normal(f64),
}

impl Draw {
    /// PyTorch's own, of layers that ask for no other: uniform below 1 / sqrt(inputs).
    pub const PYTORCH: Self = Self::Kaiming(0.577_350_269_189_625_7);
}

impl Weight {
    /// Drawn so, with a bias, used once.
    pub fn new(draw: Draw) -> Self {
        Self { draw, uses: 1, bias: true }
    }

    /// The same, at so many positions of an image.
    pub fn at(self, uses: usize) -> Self {
        Self { uses, ..self }
    }

    /// The same without a bias.
    pub fn without_bias(self) -> Self {
        Self { bias: false, ..self }
    }
}

impl Builder {
    /// A network of nothing yet. `pipe_widths` are the pipes that an extracted subnet keeps less of than their blocks have.
    pub fn new(image: ImageShape, classes: usize, pipe_widths: BTreeMap<String, usize>) -> Self {
        let extent = Extent::Map { height: image.height, width: image.width };
        let values = vec![Value { extent, channels: Channels::Fixed(image.channels) }];
        Self { spec: Spec::default(), image, classes, layers: Vec::new(), values, pipe_widths }
    }

    /// The network, whose output is what its last layer makes.
    pub fn build(self) -> Program {
        Program::new(self.spec, self.image, self.classes, self.layers, self.values)
    }

    /// The image.
    pub fn image(&self) -> ValueId {
        IMAGE
    }

    /// Channels of a value, or of several side by side, which no pipe shrinks.
    ///
    /// # Panics
    /// If a pipe does.
    pub fn stream(&self, parts: &[ValueId]) -> usize {
        let width = |&part: &ValueId| match self.values[part].channels {
            Channels::Fixed(channels) => channels,
            other => panic!("{other:?} is inside a block"),
        };
        parts.iter().map(width).sum()
    }

    /// Adds a pipe.
    pub fn pipe(&mut self, mut pipe: Pipe) -> PipeId {
        if let Some(&width) = self.pipe_widths.get(&pipe.name) {
            // A block as wide as its pipe is what that pipe is.
            pipe.block_width = if pipe.block_width == pipe.width { width } else { pipe.block_width };
            pipe.width = width;
        }
        self.spec.pipes.push(pipe);
        self.spec.pipes.len() - 1
    }

    /// The axes of channels in a parameter.
    fn axes(&self, channels: Channels) -> Vec<usize> {
        let width = |pipe: PipeId| self.spec.pipes[pipe].width;
        match channels {
            Channels::Fixed(channels) => vec![channels],
            Channels::Pipe { pipe, parts: 1 } => vec![width(pipe)],
            Channels::Pipe { pipe, parts } => vec![parts, width(pipe)],
            Channels::Heads { pipe, parts: 1, heads } => vec![heads, width(pipe)],
            Channels::Heads { pipe, parts, heads } => vec![parts, heads, width(pipe)],
        }
    }

    /// Adds a parameter: `kernel` axes, then those of the channels that it reads and makes. The last axis of each
    /// shrinks with the channels' pipe.
    fn param(
        &mut self,
        name: String,
        kernel: &[usize],
        channels: &[(Channels, Role)],
        public: Public,
        init: Init,
        uses: usize,
    ) -> ParamId {
        let (mut shape, mut slices) = (kernel.to_vec(), Vec::new());
        for &(channels, role) in channels {
            let axes = self.axes(channels);
            shape.extend(&axes);
            let (axis, copies) = (shape.len() - 1, axes[..axes.len() - 1].iter().product());
            slices.extend(channels.pipe().map(|pipe| Slice { axis, pipe, role, copies }));
        }
        self.spec.params.push(Param {
            name,
            shape,
            slices,
            public,
            pieces: Vec::new(),
            init,
            uses: uses as u64,
            trainable: true,
        });
        self.spec.params.len() - 1
    }

    /// A parameter that no gradient reaches.
    pub fn buffer(&mut self, name: &str, shape: &[usize], public: Public, init: Init) -> ParamId {
        let param = self.param(name.into(), shape, &[], public, init, 0);
        self.spec.params[param].trainable = false;
        param
    }

    /// A vector of channels; `order` of its axes is that of the public checkpoints.
    fn vector(&mut self, name: String, channels: Channels, order: Vec<usize>, init: Init) -> ParamId {
        self.param(name, &[], &[(channels, Role::Follows)], Public(vec![order]), init, 0)
    }

    /// A weight and a bias. `kernel` has the rows and columns of a convolution's; `None` is a matrix.
    fn dense(
        &mut self,
        name: &str,
        kernel: Option<[usize; 2]>,
        from: Channels,
        (to, role): (Channels, Role),
        weight: Weight,
    ) -> Dense {
        let (inputs, outputs) = (self.axes(from), self.axes(to));
        // Beside attention the kernel of a convolution is 1x1, and our weight a matrix.
        let is_plain = |channels| !matches!(channels, Channels::Heads { .. });
        let sides = kernel.filter(|_| is_plain(from) && is_plain(to)).map_or(vec![], |sides| sides.to_vec());
        let taps: usize = sides.iter().product();
        let (fan_in, fan_out) = (inputs.iter().product::<usize>() * taps, outputs.iter().product::<usize>() * taps);
        let (init, bias) = match weight.draw {
            Draw::Xavier(gain) => (Init::Xavier { fan_in, fan_out, gain }, Init::Constant(0.0)),
            Draw::Kaiming(gain) => (Init::Kaiming { fan_in, gain }, Init::Kaiming { fan_in, gain }),
            Draw::Normal(deviation) => (Init::Normal(deviation), Init::Constant(0.0)),
        };
        // EDM's convolutions make the queries, keys and values of a channel neighbours.
        let order: Vec<usize> = match (to, kernel) {
            (Channels::Heads { parts: 2.., .. }, Some(_)) => vec![1, 2, 0],
            _ => (0..outputs.len()).collect(),
        };
        let after = |axes: &[usize], first: usize| axes.iter().map(|axis| axis + first).collect::<Vec<_>>();
        let first = sides.len();
        let mut public = vec![after(&order, first + inputs.len()), (first..first + inputs.len()).collect()];
        public
            .extend(kernel.iter().flat_map(|_| [0, 1].map(|side| if sides.is_empty() { vec![] } else { vec![side] })));
        let channels = [(from, Role::Consumes), (to, role)];
        let uses = weight.uses;
        let has_bias = weight.bias;
        let weight = self.param(format!("{name}.weight"), &sides, &channels, Public(public), init, uses);
        let bias = has_bias.then(|| self.vector(format!("{name}.bias"), to, order, bias));
        Dense { weight, bias, to }
    }

    /// The parameters of a convolution with a kernel of these rows and columns.
    pub fn conv(&mut self, name: &str, kernel: [usize; 2], from: Channels, to: Channels, weight: Weight) -> Dense {
        self.dense(name, Some(kernel), from, (to, Role::Produces), weight)
    }

    /// The parameters of a linear layer whose outputs make their pipe, where they have one.
    pub fn linear(&mut self, name: &str, from: Channels, to: Channels, weight: Weight) -> Dense {
        self.dense(name, None, from, (to, Role::Produces), weight)
    }

    /// The parameters of linear layers beside each other, which public checkpoints keep apart under these names: the parts of `to`.
    pub fn projections(&mut self, name: &str, pieces: &[&str], from: Channels, to: Channels, weight: Weight) -> Dense {
        let layer = self.dense(&format!("{name}.{}", pieces.join("_")), None, from, (to, Role::Produces), weight);
        let is_parts =
            matches!(to, Channels::Heads { parts, .. } | Channels::Pipe { parts, .. } if parts == pieces.len());
        assert!(is_parts && pieces.len() > 1, "{to:?} does not have the parts {pieces:?}");
        for (param, kind) in [(Some(layer.weight), "weight"), (layer.bias, "bias")] {
            let Some(param) = param.map(|param| &mut self.spec.params[param]) else { continue };
            param.pieces = pieces.iter().map(|piece| format!("{name}.{piece}.{kind}")).collect();
            // The outputs are the first of the public axes, and the parts the slowest of theirs.
            param.public.0[0].remove(0);
        }
        layer
    }

    /// A table of so many rows of so many channels, as it stands in public checkpoints.
    pub fn table(&mut self, name: &str, rows: usize, channels: usize, deviation: f64) -> ParamId {
        let public = Public(vec![vec![0], vec![1]]);
        self.param(format!("{name}.weight"), &[rows, channels], &[], public, Init::Normal(deviation), 1)
    }

    /// The parameters of a linear layer on a vector of so many channels for [`Self::branch`]; its outputs follow their pipe.
    pub fn affine(&mut self, name: &str, from: usize, to: Channels, draw: Draw) -> Dense {
        self.dense(name, None, Channels::Fixed(from), (to, Role::Follows), Weight::new(draw))
    }

    /// The parameters of a GroupNorm of channels that no pipe shrinks, in so many groups of neighbours.
    pub fn group_norm(&mut self, name: &str, channels: usize, groups: usize, eps: f32) -> Norm {
        let share = channels / groups;
        let table = GroupTable::new((0..channels).map(|channel| (channel / share) as u32).collect());
        self.norm(name, Channels::Fixed(channels), Over::Groups(Arc::new(table)), eps)
    }

    /// The parameters of a GroupNorm of a pipe's channels.
    pub fn pipe_norm(&mut self, name: &str, pipe: PipeId, eps: f32) -> Norm {
        self.norm(name, Channels::of(pipe), Over::PipeGroups(pipe), eps)
    }

    /// The parameters of a LayerNorm of so many channels.
    pub fn layer_norm(&mut self, name: &str, channels: usize, eps: f32) -> Norm {
        self.norm(name, Channels::Fixed(channels), Over::Pixel, eps)
    }

    fn norm(&mut self, name: &str, channels: Channels, over: Over, eps: f32) -> Norm {
        let scale = self.vector(format!("{name}.weight"), channels, vec![0], Init::Constant(1.0));
        let shift = self.vector(format!("{name}.bias"), channels, vec![0], Init::Constant(0.0));
        Norm { scale, shift, over, eps, film: None }
    }

    fn layer(&mut self, name: String, op: Op, extent: Extent, channels: Channels) -> ValueId {
        self.layers.push(Layer { name, op });
        self.values.push(Value { extent, channels });
        self.values.len() - 1
    }

    /// A vector of so many channels of the noise level or the class.
    pub fn embedding(&mut self, name: &str, embedding: Embedding, channels: usize) -> ValueId {
        self.layer(name.into(), Op::Embedding(embedding), Extent::Vector, Channels::Fixed(channels))
    }

    /// A sequence of tokens, whose positions have this name.
    pub fn tokens(&mut self, name: &str, front: Vec<ValueId>, x: ValueId, deviation: f64) -> ValueId {
        let (tokens, channels) = (front.len() + self.values[x].extent.pixels(), self.stream(&[x]));
        let public = Public(vec![vec![], vec![0], vec![1]]);
        let positions = self.param(name.into(), &[tokens, channels], &[], public, Init::Normal(deviation), 0);
        let extent = Extent::Map { height: tokens, width: 1 };
        self.layer(name.into(), Op::Tokens { front, x, positions }, extent, Channels::Fixed(channels))
    }

    /// The last tokens as an image of this size, in squares of `patch * patch` pixels.
    pub fn unpatch(&mut self, x: ValueId, patch: usize, height: usize, width: usize) -> ValueId {
        let channels = Channels::Fixed(self.stream(&[x]) / (patch * patch));
        self.layer("unpatch".into(), Op::Unpatch { x, patch }, Extent::Map { height, width }, channels)
    }

    /// A convolution or a linear layer.
    ///
    /// # Panics
    /// If it scales a sum that is none.
    pub fn product(&mut self, product: Product) -> ValueId {
        assert!(product.residual.is_some() || product.scale == 1.0, "a scale is of a sum");
        let extent = self.extent(&product.x).at(product.places);
        let (name, to) = (self.name_of(product.weight), product.to);
        self.layer(name, Op::Product(product), extent, to)
    }

    /// A convolution of all that `x` reads to so many channels, none of which a pipe shrinks, with its parameters under this name.
    pub fn whole_conv(
        &mut self,
        name: &str,
        x: impl Into<View>,
        channels: usize,
        places: Places,
        draw: Draw,
    ) -> ValueId {
        let x = x.into();
        let (from, to) = (Channels::Fixed(self.stream(&x.parts)), Channels::Fixed(channels));
        let weight = Weight::new(draw).at(self.extent(&x).at(places).pixels());
        let layer = self.conv(name, places.kernel, from, to, weight);
        self.product(Product { places, ..Product::new(x, layer, places.kernel) })
    }

    /// A pool of values of one size, which no pipe shrinks.
    ///
    /// # Panics
    /// If a window has no pixel of the map.
    pub fn pool(&mut self, name: String, pool: Pool) -> ValueId {
        let (places, extent) = (pool.places, self.values[pool.parts[0]].extent);
        assert!(
            (0..2).all(|axis| places.pad[axis] < places.kernel[axis]),
            "a window has a pixel of the map: {places:?}"
        );
        let channels = Channels::Fixed(self.stream(&pool.parts));
        self.layer(name, Op::Pool(pool), extent.at(places), channels)
    }

    /// The layer of all linear layers on the vector `x` that [`Self::branch`] adds from here on.
    pub fn branches(&mut self, x: ValueId) -> ValueId {
        self.layer("branches".into(), Op::Branches { x, to: Vec::new() }, Extent::Vector, Channels::Fixed(0))
    }

    /// Adds a linear layer to that of all branches, as one branch for [`Product::sample_bias`] or as two for [`Norm::film`], of
    /// which it gives the first. `more` is added to the bias.
    ///
    /// # Panics
    /// If there is no such layer yet.
    pub fn branch(&mut self, layer: Dense, parts: usize, more: Option<ParamId>) -> usize {
        let full = self.spec.full();
        let open = self.layers.iter_mut().zip(&mut self.values[1..]).find_map(|(open, value)| match &mut open.op {
            Op::Branches { to, .. } => Some((to, &mut value.channels)),
            _ => None,
        });
        let (to, channels) = open.expect("the branches come before what reads them");
        let bias: Vec<ParamId> = layer.bias.into_iter().chain(more).collect();
        let each = match layer.to {
            Channels::Fixed(channels) => Channels::Fixed(channels / parts),
            channels => Channels::of(channels.pipe().expect("what is not fixed is a pipe's")),
        };
        to.extend((0..parts).map(|part| Branch {
            weight: layer.weight,
            bias: bias.clone(),
            part: (part, parts),
            to: each,
        }));
        *channels = Channels::Fixed(to.iter().map(|branch| branch.to.kept(&full)).sum());
        to.len() - parts
    }

    /// What an image is told by beside its class: so many tokens of so many channels.
    pub fn context(&mut self, tokens: usize, channels: usize) -> ValueId {
        self.layer("context".into(), Op::Context, Extent::Map { height: tokens, width: 1 }, Channels::Fixed(channels))
    }

    /// Attention of the pixels of `q` to those of `kv`, in the same heads. For the attention of pixels to each other both are one value
    /// of queries, keys and values.
    ///
    /// # Panics
    /// If those are no values of heads with these parts.
    pub fn attention(&mut self, name: &str, q: ValueId, kv: ValueId) -> ValueId {
        let (Value { extent, channels: Channels::Heads { pipe, parts, heads } }, Channels::Heads { parts: others, .. }) =
            (self.values[q], self.values[kv].channels)
        else {
            panic!("attention is between heads")
        };
        assert_eq!((parts, others), if q == kv { (3, 3) } else { (1, 2) }, "the parts of queries, keys and values");
        self.layer(name.into(), Op::Attention { q, kv }, extent, Channels::Heads { pipe, parts: 1, heads })
    }

    /// `a * gelu(b)` of a value of two parts of a pipe.
    ///
    /// # Panics
    /// If it is none.
    pub fn gate(&mut self, name: &str, x: ValueId) -> ValueId {
        let Value { extent, channels: Channels::Pipe { pipe, parts: 2 } } = self.values[x] else {
            panic!("a gate is of two parts of a pipe")
        };
        self.layer(name.into(), Op::Gate { x }, extent, Channels::of(pipe))
    }

    /// `(x + residual) * scale`.
    ///
    /// # Panics
    /// If it scales a sum that is none.
    pub fn write(&mut self, name: String, x: View, residual: Option<ValueId>, scale: f32) -> ValueId {
        assert!(residual.is_some() || scale == 1.0, "a scale is of a sum");
        let (extent, channels) = (self.extent(&x), Channels::Fixed(self.stream(&x.parts)));
        self.layer(name, Op::Write { x, residual, scale }, extent, channels)
    }

    /// The size of what a view reads, resampled.
    pub fn extent(&self, view: &View) -> Extent {
        self.values[view.parts[0]].extent.resampled(view.resample.as_ref())
    }

    fn name_of(&self, weight: ParamId) -> String {
        self.spec.params[weight].name.trim_end_matches(".weight").to_owned()
    }
}

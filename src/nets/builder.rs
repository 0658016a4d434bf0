//! Writes a [`Program`] and its [`Spec`], by calls that read like a forward pass.
//!
//! A parameter's shape and the axes that shrink with a pipe follow from the [`Channels`] that it reads and makes: forward
//! pass and table cannot disagree.

use super::ImageShape;
use super::program::{
    Branch, Channels, Dense, Extent, Groups, IMAGE, Layer, NoiseEmbedding, Norm, Op, ParamId, PipeId, Product, Program,
    Value, ValueId, View,
};
use crate::ops::cpu::group_norm::GroupTable;
use crate::supernet::spec::{Init, Param, Pipe, PublicLayout, Role, Slice, Spec};
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

/// How a weight is drawn, and how often an image uses it.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// A factor on Xavier's initialisation.
    pub gain: f64,
    /// Output positions of an image.
    pub uses: usize,
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
        pipe.width = self.pipe_widths.get(&pipe.name).copied().unwrap_or(pipe.width);
        self.spec.pipes.push(pipe);
        self.spec.pipes.len() - 1
    }

    /// The axes of channels in a parameter.
    fn axes(&self, channels: Channels) -> Vec<usize> {
        let width = |pipe: PipeId| self.spec.pipes[pipe].width;
        match channels {
            Channels::Fixed(channels) => vec![channels],
            Channels::Pipe(pipe) => vec![width(pipe)],
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
        public: PublicLayout,
        init: Init,
        uses: usize,
    ) -> ParamId {
        let (mut shape, mut slices) = (kernel.to_vec(), Vec::new());
        for &(channels, role) in channels {
            shape.extend(self.axes(channels));
            let axis = shape.len() - 1;
            slices.extend(channels.pipe().map(|pipe| Slice { axis, pipe, role }));
        }
        self.spec.params.push(Param { name, shape, slices, public, init, uses: uses as u64, trainable: true });
        self.spec.params.len() - 1
    }

    /// A parameter that no gradient reaches.
    pub fn buffer(&mut self, name: &str, shape: &[usize], public: PublicLayout, init: Init) -> ParamId {
        let param = self.param(name.into(), shape, &[], public, init, 0);
        self.spec.params[param].trainable = false;
        param
    }

    fn vector(&mut self, name: String, channels: Channels, value: f32) -> ParamId {
        let public = match channels {
            Channels::Heads { .. } => PublicLayout::QkvBias,
            _ => PublicLayout::Vector,
        };
        self.param(name, &[], &[(channels, Role::Follows)], public, Init::Constant(value), 0)
    }

    /// A weight and a bias. `kernel` is the side of a convolution's; `None` is a matrix.
    fn dense(
        &mut self,
        name: &str,
        kernel: Option<usize>,
        from: Channels,
        (to, role): (Channels, Role),
        weight: Weight,
    ) -> Dense {
        let sides = kernel.map_or(vec![], |side| vec![side; 2]);
        let taps: usize = sides.iter().product();
        let fan = |axes: Vec<usize>| axes.iter().product::<usize>() * taps;
        let (fan_in, fan_out) = (fan(self.axes(from)), fan(self.axes(to)));
        let init = Init::Xavier { fan_in, fan_out, gain: weight.gain };
        let (public, sides) = match (from, to, kernel) {
            // In the checkpoints these are 1x1 convolutions.
            (Channels::Heads { .. }, _, _) => (PublicLayout::AttnOut, vec![]),
            (_, Channels::Heads { .. }, _) => (PublicLayout::Qkv, vec![]),
            (_, _, Some(_)) => (PublicLayout::Conv, sides),
            (_, _, None) => (PublicLayout::Linear, sides),
        };
        let channels = [(from, Role::Consumes), (to, role)];
        let weight = self.param(format!("{name}.weight"), &sides, &channels, public, init, weight.uses);
        let bias = self.vector(format!("{name}.bias"), to, 0.0);
        Dense { weight, bias, to }
    }

    /// The parameters of a convolution with a square kernel of this side.
    pub fn conv(&mut self, name: &str, kernel: usize, from: Channels, to: Channels, weight: Weight) -> Dense {
        self.dense(name, Some(kernel), from, (to, Role::Produces), weight)
    }

    /// The parameters of a linear layer on a vector; its outputs follow their pipe, where they have one.
    pub fn linear(&mut self, name: &str, from: usize, to: Channels) -> Dense {
        self.dense(name, None, Channels::Fixed(from), (to, Role::Follows), Weight { gain: 1.0, uses: 1 })
    }

    /// The parameters of a GroupNorm of channels that no pipe shrinks, in so many groups of neighbours.
    pub fn group_norm(&mut self, name: &str, channels: usize, groups: usize, eps: f32) -> Norm {
        let share = channels / groups;
        let table = GroupTable::new((0..channels).map(|channel| (channel / share) as u32).collect());
        self.norm(name, Channels::Fixed(channels), Groups::Fixed(Arc::new(table)), eps)
    }

    /// The parameters of a GroupNorm of a pipe's channels.
    pub fn pipe_norm(&mut self, name: &str, pipe: PipeId, eps: f32) -> Norm {
        self.norm(name, Channels::Pipe(pipe), Groups::Pipe(pipe), eps)
    }

    fn norm(&mut self, name: &str, channels: Channels, groups: Groups, eps: f32) -> Norm {
        let scale = self.vector(format!("{name}.weight"), channels, 1.0);
        let shift = self.vector(format!("{name}.bias"), channels, 0.0);
        Norm { scale, shift, groups, eps }
    }

    fn layer(&mut self, name: String, op: Op, extent: Extent, channels: Channels) -> ValueId {
        self.layers.push(Layer { name, op });
        self.values.push(Value { extent, channels });
        self.values.len() - 1
    }

    /// The noise level, and the class where there are classes, as a vector of so many channels.
    pub fn embedding(&mut self, embedding: NoiseEmbedding, channels: usize) -> ValueId {
        self.layer("embedding".into(), Op::Embedding(embedding), Extent::Vector, Channels::Fixed(channels))
    }

    /// A convolution or a linear layer.
    pub fn product(&mut self, product: Product) -> ValueId {
        let extent = self.extent(&product.x).convolved(product.kernel, product.pad);
        let (name, to) = (self.name_of(product.weight), product.to);
        self.layer(name, Op::Product(product), extent, to)
    }

    /// The layer of all linear layers on the vector `x` that [`Self::branch`] adds from here on.
    pub fn branches(&mut self, x: ValueId) -> ValueId {
        self.layer("branches".into(), Op::Branches { x, to: Vec::new() }, Extent::Vector, Channels::Fixed(0))
    }

    /// Adds a linear layer to that of all branches: for [`Product::sample_bias`]. `more` is added to its bias.
    ///
    /// # Panics
    /// If there is no such layer yet.
    pub fn branch(&mut self, layer: Dense, more: ParamId) -> usize {
        let full = self.spec.full();
        let open = self.layers.iter_mut().zip(&mut self.values[1..]).find_map(|(open, value)| match &mut open.op {
            Op::Branches { to, .. } => Some((to, &mut value.channels)),
            _ => None,
        });
        let (to, channels) = open.expect("the branches come before what reads them");
        to.push(Branch { weight: layer.weight, bias: vec![layer.bias, more], to: layer.to });
        *channels = Channels::Fixed(to.iter().map(|branch| branch.to.kept(&full)).sum());
        to.len() - 1
    }

    /// Attention in the heads of `qkv`.
    ///
    /// # Panics
    /// If that is no value of heads.
    pub fn attention(&mut self, name: &str, qkv: ValueId) -> ValueId {
        let Value { extent, channels: Channels::Heads { pipe, heads, .. } } = self.values[qkv] else {
            panic!("attention is between heads")
        };
        self.layer(name.into(), Op::Attention { qkv }, extent, Channels::Heads { pipe, parts: 1, heads })
    }

    /// `(x + residual) * scale`.
    pub fn write(&mut self, name: String, x: View, residual: Option<ValueId>, scale: f32) -> ValueId {
        let (extent, channels) = (self.extent(&x), Channels::Fixed(self.stream(&x.parts)));
        self.layer(name, Op::Write { x, residual, scale }, extent, channels)
    }

    fn extent(&self, view: &View) -> Extent {
        self.values[view.parts[0]].extent.resampled(view.resample.as_ref())
    }

    fn name_of(&self, weight: ParamId) -> String {
        self.spec.params[weight].name.trim_end_matches(".weight").to_owned()
    }
}

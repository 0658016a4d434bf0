//! A network as a table: its pipes, and its parameters with the pipe that each of their axes shrinks with.
//!
//! Everything that treats a supernet as data reads this table: slicing, permuting, extraction, importance, counting,
//! initialisation and the translation to public checkpoint names. Only the forward pass knows more.

use crate::supernet::Widths;

/// What kind of inner width a pipe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PipeKind {
    /// Channels between the two convolutions of a block.
    Conv,
    /// Within-head offsets of q, k and v, the same in every head.
    Attn,
    /// Neurons between the two linear layers of an MLP.
    Ffn,
}

impl PipeKind {
    /// The name used in pipe names and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conv => "conv",
            Self::Attn => "attn",
            Self::Ffn => "ffn",
        }
    }
}

/// A width inside a block that the residual stream does not see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipe {
    /// `<block>.<kind>`, for example `enc.16x16_block0.conv`.
    pub name: String,
    /// The block that holds it, for example `enc.16x16_block0`.
    pub block: String,
    /// What it is a width of.
    pub kind: PipeKind,
    /// Its full width, in channels.
    pub width: usize,
    /// |l| of the paper's Formula 5: the outputs of a convolutional block, the residual width of a transformer's.
    pub block_width: usize,
    /// The blocks that share a channel budget in the paper's Formula 5, for example `enc_16x16`.
    pub allocation_group: String,
    /// Groups, at most, of the GroupNorm that normalises these channels, where there is one: see
    /// [`crate::supernet::groups::count`]. An extracted network has those of the network that it was cut from.
    pub norm_groups: Option<usize>,
    /// Multiply-accumulates an image that a channel costs beyond its weights (the two products of attention).
    pub macs_per_channel: u64,
}

/// How a parameter's elements relate to a pipe along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The weight produces the pipe's channels along this axis: it counts in their importance.
    Produces,
    /// The weight consumes the pipe's channels along this axis: it counts in their importance.
    Consumes,
    /// The parameter follows the pipe's channels (biases, norms, embeddings): sliced with them, not ranked by.
    Follows,
}

/// One axis of a parameter that shrinks with a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The axis of the parameter's shape.
    pub axis: usize,
    /// Index into [`Spec::pipes`].
    pub pipe: usize,
    /// Whether the parameter makes or uses the channels.
    pub role: Role,
    /// The channels of the parameter that share a place in the pipe, along the axes right before: heads, times queries, keys
    /// and values. Each counts in importance with an absolute value of its own.
    pub copies: usize,
}

/// How the public checkpoints lay a parameter out: by public axis, our axes that it runs over, the slowest first. An axis
/// over none of ours has length 1.
///
/// Ours is input-major and channels last. So `[[1], [0]]` is a linear layer, `[out, in]`; `[[3], [2], [0], [1]]` a
/// convolution, `[out, in, kh, kw]`; `[[2, 3, 1], [0], [], []]` EDM's `qkv`, `[(head, channel, {q,k,v}), in, 1, 1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public(pub Vec<Vec<usize>>);

impl Public {
    /// As it is: a vector.
    pub fn vector() -> Self {
        Self(vec![vec![0]])
    }
}

/// How a parameter is drawn before training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform Xavier: `gain * U(-1, 1) * sqrt(6 / (fan_in + fan_out))`.
    Xavier {
        /// Number of inputs of one output.
        fan_in: usize,
        /// Number of outputs of one input.
        fan_out: usize,
        /// A factor on top.
        gain: f64,
    },
    /// Uniform Kaiming: `gain * U(-1, 1) * sqrt(3 / fan_in)`.
    Kaiming {
        /// Number of inputs of one output.
        fan_in: usize,
        /// A factor on top.
        gain: f64,
    },
    /// A constant.
    Constant(f32),
    /// Normal with this standard deviation.
    Normal(f64),
}

/// One parameter tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Our name, which is the public one without a leading `model.`.
    pub name: String,
    /// Its full-width shape, in our layout.
    pub shape: Vec<usize>,
    /// The axes that shrink with a pipe.
    pub slices: Vec<Slice>,
    /// How the public checkpoints lay it out.
    pub public: Public,
    /// The public names of the tensors that follow each other along the axis that `public` does not run over, such as queries, keys and
    /// values; empty where there is one tensor, of the same name.
    pub pieces: Vec<String>,
    /// How it is drawn before training.
    pub init: Init,
    /// How often an image uses each element in a multiply-accumulate: output positions for a weight, 0 for the rest.
    pub uses: u64,
    /// False for buffers that training leaves alone (Fourier frequencies).
    pub trainable: bool,
}

/// A network as a table.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Spec {
    /// Every pipe, in forward order.
    pub pipes: Vec<Pipe>,
    /// Every parameter, in forward order.
    pub params: Vec<Param>,
}

impl Spec {
    /// The full width of every pipe.
    pub fn full(&self) -> Widths {
        Widths(self.pipes.iter().map(|pipe| pipe.width).collect())
    }

    /// The shape of `param` in the subnet of these widths.
    pub fn sliced_shape(&self, param: &Param, widths: &Widths) -> Vec<usize> {
        let mut shape = param.shape.clone();
        for slice in &param.slices {
            shape[slice.axis] = widths.0[slice.pipe];
        }
        shape
    }

    /// Parameters of the subnet of these widths.
    pub fn parameters(&self, widths: &Widths) -> u64 {
        self.params.iter().map(|param| self.elements(param, widths)).sum()
    }

    /// Multiply-accumulates that one image costs in one call of the subnet of these widths.
    pub fn macs(&self, widths: &Widths) -> u64 {
        let weights: u64 = self.params.iter().map(|param| param.uses * self.elements(param, widths)).sum();
        let products: u64 = self.pipes.iter().zip(&widths.0).map(|(pipe, &w)| pipe.macs_per_channel * w as u64).sum();
        weights + products
    }

    fn elements(&self, param: &Param, widths: &Widths) -> u64 {
        self.sliced_shape(param, widths).iter().product::<usize>() as u64
    }
}

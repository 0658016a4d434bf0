//! Convolutions and linear layers on any prefix of their weights (`kernels/conv.cuh`).

use super::{Cost, Launch, Map, Precision, pitch};
use crate::ops::Act;
use crate::ops::cpu::conv::Places;
use bytemuck::{NoUninit, Pod, Zeroable};

/// Pixels and outputs of a block.
const TILE: usize = 64;

/// Weights in a machine's memory, at full width: see [`pack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// Where they are.
    pub address: u64,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Inputs.
    pub inputs: usize,
    /// Outputs of a group.
    pub outputs: usize,
    /// Groups of outputs: 3 a head for queries, keys and values, 2 for a gate and what it gates, else 1. A subnet keeps a prefix of each.
    pub groups: usize,
}

impl Weights {
    fn taps(&self) -> usize {
        self.kernel.into_iter().product()
    }

    /// Rows of a tap.
    fn rows(&self) -> usize {
        pitch(self.inputs)
    }

    /// Columns.
    fn columns(&self) -> usize {
        self.groups * pitch(self.outputs)
    }

    /// Bytes that [`pack`] makes.
    pub fn bytes(&self, precision: Precision) -> usize {
        self.taps() * self.rows() * self.columns() * precision.bytes()
    }
}

/// Weights as the kernel reads them: `[tap, row, column]` in words of 4 bytes, a word being the values of one or two neighbouring
/// inputs; rows, and the columns of each group, are filled up with zeros to multiples of 8.
///
/// `value` is told the tap, the input, the group and the output. A narrower subnet reads a prefix of each tap's rows and of each
/// group's columns: nothing is copied for it.
pub fn pack(precision: Precision, weights: &Weights, value: impl Fn(usize, usize, usize, usize) -> f32) -> Vec<u8> {
    let per = 4 / precision.bytes();
    let (taps, columns) = (weights.taps(), pitch(weights.outputs));
    let mut bytes = Vec::with_capacity(weights.bytes(precision));
    for row in (0..taps * weights.rows()).step_by(per) {
        let (tap, input) = (row / weights.rows(), row % weights.rows());
        for column in 0..weights.columns() {
            let (group, output) = (column / columns, column % columns);
            precision.write(
                (input..input + per).map(|input| {
                    let there = input < weights.inputs && output < weights.outputs;
                    if there { value(tap, input, group, output) } else { 0.0 }
                }),
                &mut bytes,
            );
        }
    }
    bytes
}

/// A bias as the kernel reads it: f32 by column.
pub fn pack_bias(weights: &Weights, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let columns = pitch(weights.outputs);
    let at = |column: usize| {
        let (group, output) = (column / columns, column % columns);
        if output < weights.outputs { value(group, output) } else { 0.0 }
    };
    (0..weights.columns()).map(at).collect()
}

/// What a convolution does beside the product.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// f32 by column of the weights.
    pub bias: Option<u64>,
    /// Elements `[samples, pitch]` for this address and pitch.
    pub sample_bias: Option<(u64, usize)>,
    /// Added before the scale; like the output.
    pub residual: Option<&'a Map>,
    /// Of the sum.
    pub scale: f32,
    /// What comes last.
    pub act: Option<Act>,
}

impl Epilogue<'_> {
    /// Nothing.
    pub const NONE: Self = Self { bias: None, sample_bias: None, residual: None, scale: 1.0, act: None };
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Part {
    address: u64,
    stride: u32,
    width: u32,
    row: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Args {
    parts: [Part; 2],
    samples: u64,
    weight: u64,
    bias: u64,
    sample_bias: u64,
    residual: u64,
    y: u64,
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    kernel: [u32; 2],
    pad: [u32; 2],
    tap_rows: u32,
    weight_pitch: u32,
    groups: u32,
    group_columns: u32,
    outputs: u32,
    group_pitch: u32,
    sample_bias_pitch: u32,
    act: u32,
    scale: f32,
    stride: u32,
}

/// `y = epilogue(x * w)` with zeros around the map; the channels of the parts of `x` side by side.
///
/// `samples` holds the addresses of the samples of `x`, where they do not follow each other. `y` has the kept outputs of each
/// group as its channels: with several groups, `groups` times `pitch(outputs)` of them.
///
/// # Panics
/// If the shapes do not fit.
#[expect(clippy::too_many_arguments, reason = "what the product is of, named at each call")]
pub fn conv(
    precision: Precision,
    x: &[&Map],
    samples: Option<u64>,
    weights: &Weights,
    places: Places,
    outputs: usize,
    epilogue: Epilogue,
    y: &Map,
) -> Launch {
    let (widths, bytes) = super::map::parts(precision, x);
    let inputs: usize = x.iter().map(|map| map.channels).sum();
    assert_eq!(weights.kernel, places.kernel, "rows and columns of the kernel");
    assert_eq!([y.height, y.width], places.on([x[0].height, x[0].width]), "size of the output");
    assert!(inputs <= weights.inputs && outputs <= weights.outputs, "a prefix of the weights");
    assert_eq!(y.pitch(), weights.groups * pitch(outputs), "channels of the output");
    let part = |index: usize, row: usize| Part {
        address: x.get(index).map_or(0, |map| map.address),
        stride: widths[index] as u32,
        width: widths[index] as u32,
        row: row as u32,
        padding: 0,
    };
    let args = Args {
        parts: [part(0, 0), part(1, x[0].channels)],
        samples: samples.unwrap_or(0),
        weight: weights.address,
        bias: epilogue.bias.unwrap_or(0),
        sample_bias: epilogue.sample_bias.map_or(0, |(address, _)| address),
        residual: epilogue.residual.map_or(0, |map| map.address),
        y: y.address,
        height: x[0].height as u32,
        width: x[0].width as u32,
        out_height: y.height as u32,
        out_width: y.width as u32,
        kernel: places.kernel.map(|side| side as u32),
        pad: places.pad.map(|zeros| zeros as u32),
        tap_rows: weights.rows() as u32,
        weight_pitch: weights.columns() as u32,
        groups: weights.groups as u32,
        group_columns: pitch(weights.outputs) as u32,
        outputs: outputs as u32,
        group_pitch: pitch(outputs) as u32,
        sample_bias_pitch: epilogue.sample_bias.map_or(0, |(_, pitch)| pitch) as u32,
        act: match epilogue.act {
            None => 0,
            Some(Act::Silu) => 1,
            Some(Act::Gelu) => 2,
            Some(Act::Relu) => unreachable!("no kernel has ReLU"),
        },
        scale: epilogue.scale,
        stride: places.stride as u32,
    };
    let kept = places.taps() * inputs * weights.groups * outputs;
    let residual = epilogue.residual.map_or(0, |map| map.bytes(precision));
    let cost = Cost {
        bytes: (bytes + kept * precision.bytes() + residual + y.bytes(precision)) as u64,
        operations: 2 * (kept * y.pixels() * y.samples) as u64,
    };
    let grid = [y.pixels().div_ceil(TILE), weights.groups * pitch(outputs).div_ceil(TILE), y.samples];
    // im2col, product and transposition; a copy of the weights where they are a prefix; each term of `epilogue`; concatenation.
    let whole = inputs == weights.inputs && outputs == weights.outputs;
    let terms = [
        epilogue.bias.is_some(),
        epilogue.sample_bias.is_some(),
        epilogue.residual.is_some(),
        epilogue.act.is_some(),
        !whole,
    ];
    let scaled = usize::from(epilogue.scale != 1.0);
    let op_by_op = 3 + terms.into_iter().filter(|&term| term).count() + scaled + x.len() - 1;
    Launch::new("conv", Some(precision), grid, &args, cost, op_by_op)
}

//! Convolution on packed weights.

use super::epilogue::Epilogue;
use super::method::{Filtering, Method};
use super::panels::Panels;
use super::record::Kind;
use super::winograd::{self, transform_weights};
use super::{Map, Source, Workspace, direct};
use crate::ops::cpu::conv::places;

/// The weights of a convolution, packed once for every subnet.
#[derive(Debug)]
pub struct Conv {
    method: Method,
    kernel: usize,
    stride: usize,
    pad: usize,
    weights: Panels,
}

impl Conv {
    /// Packs the weights `[kernel, kernel, c_in, c_out]`, read by `value(tap, input, output)`.
    pub fn new(
        method: Method,
        [kernel, stride, pad]: [usize; 3],
        [c_in, c_out]: [usize; 2],
        value: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let kernel_of = |input: usize, output: usize| {
            std::array::from_fn(|ky| std::array::from_fn(|kx| f64::from(value(ky * 3 + kx, input, output))))
        };
        let weights = match method {
            Method::Direct => Panels::by_panel(kernel * kernel, c_in, c_out, &value),
            Method::Winograd(filtering) => {
                assert_eq!([kernel, stride, pad], [3, 1, 1], "Winograd is for padded 3x3 kernels");
                match filtering {
                    Filtering::F2 => Panels::transformed::<16>(c_in, c_out, |i, o| transform_weights(kernel_of(i, o))),
                    Filtering::F4 => Panels::transformed::<36>(c_in, c_out, |i, o| transform_weights(kernel_of(i, o))),
                }
            }
        };
        Self { method, kernel, stride, pad, weights }
    }

    /// `y = epilogue(source * weights)` with as many of the inputs and outputs as `source` and `y` have channels.
    ///
    /// # Panics
    /// If a size does not fit.
    pub fn run(&self, workspace: &mut Workspace, source: Source, epilogue: &Epilogue, y: &mut Map) {
        let [batch, height, width] = source.size();
        let out = |side: usize| places(side, self.kernel, self.stride, self.pad);
        assert_eq!([y.batch, y.height, y.width], [batch, out(height), out(width)], "size of the output");
        let long = |(bias, pitch): (&[f32], usize)| bias.len() >= (batch - 1) * pitch + y.pitch();
        assert!(epilogue.bias.is_none_or(long), "length of the bias");
        assert!(
            epilogue.residual.is_none_or(|residual| residual.data().len() == y.data().len()),
            "size of the residual"
        );
        match self.method {
            Method::Winograd(filtering) => winograd::run(workspace, filtering, source, &self.weights, epilogue, y),
            Method::Direct => {
                direct::run(workspace, source, [self.kernel, self.stride, self.pad], &self.weights, epilogue, y);
            }
        }
    }

    /// How it is computed.
    pub fn kind(&self) -> Kind {
        Kind::Conv(self.method, self.kernel)
    }

    /// Multiply-accumulates by the definition, of so many inputs, on this many values of output.
    pub fn macs(&self, c_in: usize, values: usize) -> u64 {
        (self.kernel * self.kernel * c_in * values) as u64
    }

    /// Memory that its weights take.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }
}

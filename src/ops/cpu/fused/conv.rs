//! Convolution on packed weights.

use super::epilogue::Epilogue;
use super::method::Method;
use super::panels::Panels;
use super::record::Kind;
use super::{Map, Source, Workspace, direct, winograd};
use crate::ops::cpu::conv::Places;

/// The weights of a convolution, packed once for every subnet.
#[derive(Debug)]
pub struct Conv {
    method: Method,
    places: Places,
    weights: Panels,
}

impl Conv {
    /// Packs the weights `[rows, columns, c_in, c_out]`, read by `value(tap, input, output)`.
    pub fn new(
        method: Method,
        places: Places,
        [c_in, c_out]: [usize; 2],
        value: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let weights = match method {
            Method::Direct => Panels::by_panel(places.taps(), c_in, c_out, &value),
            Method::Winograd(filtering) => {
                assert_eq!(
                    (places.kernel, places.stride),
                    (filtering.kernel(), 1),
                    "{filtering:?} is for other kernels"
                );
                winograd::weights(filtering, [c_in, c_out], value)
            }
        };
        Self { method, places, weights }
    }

    /// `y = epilogue(source * weights)` with as many of the inputs and outputs as `source` and `y` have channels.
    ///
    /// # Panics
    /// If a size does not fit.
    pub fn run(&self, workspace: &mut Workspace, source: Source, epilogue: &Epilogue, y: &mut Map) {
        let [batch, height, width] = source.size();
        let [out_height, out_width] = self.places.on([height, width]);
        assert_eq!([y.batch, y.height, y.width], [batch, out_height, out_width], "size of the output");
        let long = |(bias, pitch): (&[f32], usize)| bias.len() >= (batch - 1) * pitch + y.pitch();
        assert!(epilogue.bias.is_none_or(long), "length of the bias");
        assert!(
            epilogue.residual.is_none_or(|residual| residual.data().len() == y.data().len()),
            "size of the residual"
        );
        match self.method {
            Method::Winograd(filtering) => {
                winograd::run(workspace, filtering, source, self.places.pad, &self.weights, epilogue, y);
            }
            Method::Direct => direct::run(workspace, source, self.places, &self.weights, epilogue, y),
        }
    }

    /// How it is computed.
    pub fn kind(&self) -> Kind {
        Kind::Conv(self.method, self.places.kernel)
    }

    /// Multiply-accumulates by the definition, of so many inputs, on this many values of output.
    pub fn macs(&self, c_in: usize, values: usize) -> u64 {
        (self.places.taps() * c_in * values) as u64
    }

    /// Memory that its weights take.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }
}

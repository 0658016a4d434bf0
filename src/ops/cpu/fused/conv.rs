//! Convolution on packed weights.

use super::panels::{Line, PANEL, Panels, floats_mut, panels};
use super::record::Kind;
use super::winograd::{self, Filtering, transform_weights};
use super::{Map, Source, Workspace, direct};
use pulp::Simd;
use std::cell::RefCell;

/// How a convolution is computed. Chosen by its shape alone, never by the batch, the width of the subnet or a measured
/// time: otherwise the same request could give different bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// With fewer multiplications.
    Winograd(Filtering),
    /// By the definition.
    Direct,
}

impl Method {
    /// The method for a kernel of `kernel` by `kernel` on maps of `side` by `side`.
    pub fn of([kernel, stride, pad]: [usize; 3], c_in: usize, side: usize) -> Self {
        match (kernel, stride, pad) {
            // Few input channels leave less to multiply than the transforms cost.
            (3, 1, 1) if c_in < PANEL => Self::Direct,
            // On few tiles the weights are read for little arithmetic, and F(2x2) has less than half of them.
            (3, 1, 1) if side <= 8 => Self::Winograd(Filtering::F2),
            (3, 1, 1) => Self::Winograd(Filtering::F4),
            _ => Self::Direct,
        }
    }
}

/// The weights of a convolution, packed once for every subnet.
#[derive(Debug)]
pub struct Conv {
    method: Method,
    kernel: usize,
    stride: usize,
    pad: usize,
    weights: Panels,
}

/// What happens to a sum before it is written: `(sum + bias + residual) * scale`.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// By channel, on whole panels, and the elements from a sample's bias to the next's: 0 where all share one.
    pub bias: Option<(&'a [f32], usize)>,
    /// A map of the size of the output.
    pub residual: Option<&'a Map>,
    /// A factor on all of it.
    pub scale: f32,
}

/// A [`Finish`] of one vector of channels.
#[derive(Clone, Copy)]
pub(super) struct FinishAt<'a, S: Simd> {
    simd: S,
    bias: S::f32s,
    residual: Option<&'a [f32]>,
    scale: S::f32s,
}

impl<'a> Finish<'a> {
    /// A bias that all samples share, and nothing else.
    pub fn bias(bias: &'a [f32]) -> Self {
        Self { bias: Some((bias, 0)), residual: None, scale: 1.0 }
    }

    /// What is written where nothing is summed: of a product that reads no channel.
    pub fn alone(&self, y: &mut Map) {
        let (pitch, pixels) = (y.pitch(), y.height * y.width);
        if pitch == 0 {
            return;
        }
        for (pixel, y) in y.data_mut().chunks_exact_mut(pitch).enumerate() {
            match self.bias {
                None => y.fill(0.0),
                Some((bias, row)) => y.copy_from_slice(&bias[pixel / pixels * row..][..pitch]),
            }
            if let Some(residual) = self.residual {
                let residual = &residual.data()[pixel * pitch..][..pitch];
                y.iter_mut().zip(residual).for_each(|(y, residual)| *y += residual);
            }
            y.iter_mut().for_each(|y| *y *= self.scale);
        }
    }

    #[inline(always)]
    pub(super) fn at<S: Simd>(&self, simd: S, sample: usize, channel: usize) -> FinishAt<'a, S> {
        let bias = self.bias.map(|(bias, pitch)| load::<S>(&bias[sample * pitch + channel..]));
        FinishAt {
            simd,
            bias: bias.unwrap_or_else(|| simd.splat_f32s(0.0)),
            residual: self.residual.map(Map::data),
            scale: simd.splat_f32s(self.scale),
        }
    }
}

impl<S: Simd> FinishAt<'_, S> {
    /// The value at `place` of the output, given its sum.
    #[inline(always)]
    pub(super) fn value(&self, place: usize, sum: S::f32s) -> S::f32s {
        let simd = self.simd;
        let mut value = simd.add_f32s(sum, self.bias);
        if let Some(residual) = self.residual {
            value = simd.add_f32s(value, load::<S>(&residual[place..]));
        }
        simd.mul_f32s(value, self.scale)
    }
}

/// The first values, as many as a vector has.
#[inline(always)]
fn load<S: Simd>(values: &[f32]) -> S::f32s {
    // SAFETY: the slice has the lanes.
    unsafe { values[..S::F32_LANES].as_ptr().cast::<S::f32s>().read_unaligned() }
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

    /// `y = finish(source * weights)` with as many of the inputs and outputs as `source` and `y` have channels.
    ///
    /// # Panics
    /// If a size does not fit.
    pub fn run(&self, workspace: &mut Workspace, source: Source, finish: &Finish, y: &mut Map) {
        let [batch, height, width] = source.size();
        let out = |size: usize| (size + 2 * self.pad - self.kernel) / self.stride + 1;
        assert_eq!([y.batch, y.height, y.width], [batch, out(height), out(width)], "size of the output");
        let long = |(bias, pitch): (&[f32], usize)| bias.len() >= (batch - 1) * pitch + y.pitch();
        assert!(finish.bias.is_none_or(long), "length of the bias");
        assert!(finish.residual.is_none_or(|residual| residual.data().len() == y.data().len()), "size of the residual");
        match self.method {
            Method::Winograd(filtering) => winograd::run(workspace, filtering, source, &self.weights, finish, y),
            Method::Direct => {
                direct::run(workspace, source, [self.kernel, self.stride, self.pad], &self.weights, finish, y);
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

/// Calls `then` with so many floats of this thread's own, on whole cache lines, of unspecified content.
pub(super) fn with_scratch<T>(floats: usize, then: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local!(static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) });
    SCRATCH.with_borrow_mut(|lines| {
        let wanted = panels(floats);
        if lines.len() < wanted {
            lines.resize(wanted, Line::ZERO);
        }
        then(&mut floats_mut(lines)[..floats])
    })
}

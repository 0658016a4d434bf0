//! What happens to a sum before it is written.

use super::Map;
use crate::ops::Act;
use crate::ops::cpu::activation;
use pulp::Simd;

/// `(sum + bias + residual) * scale`, and ReLU of it where that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// By channel, on whole panels, and the elements from a sample's bias to the next's: 0 where all share one.
    pub bias: Option<(&'a [f32], usize)>,
    /// A map of the size of the output.
    pub residual: Option<&'a Map>,
    /// A factor on all of it.
    pub scale: f32,
    /// Whether what is negative then becomes 0.
    pub relu: bool,
}

/// An [`Epilogue`] of one vector of channels.
#[derive(Clone, Copy)]
pub(super) struct EpilogueAt<'a, S: Simd> {
    simd: S,
    bias: S::f32s,
    residual: Option<&'a [f32]>,
    scale: S::f32s,
    relu: bool,
}

impl<'a> Epilogue<'a> {
    /// A bias that all samples share, and nothing else.
    pub fn bias(bias: &'a [f32]) -> Self {
        Self { bias: Some((bias, 0)), residual: None, scale: 1.0, relu: false }
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
            if self.relu {
                activation::in_place(Act::Relu, y);
            }
        }
    }

    #[inline(always)]
    pub(super) fn at<S: Simd>(&self, simd: S, sample: usize, channel: usize) -> EpilogueAt<'a, S> {
        let bias = self.bias.map(|(bias, pitch)| load::<S>(&bias[sample * pitch + channel..]));
        EpilogueAt {
            simd,
            bias: bias.unwrap_or_else(|| simd.splat_f32s(0.0)),
            residual: self.residual.map(Map::data),
            scale: simd.splat_f32s(self.scale),
            relu: self.relu,
        }
    }
}

impl<S: Simd> EpilogueAt<'_, S> {
    /// The value at `place` of the output, given its sum.
    #[inline(always)]
    pub(super) fn value(&self, place: usize, sum: S::f32s) -> S::f32s {
        let simd = self.simd;
        let mut value = simd.add_f32s(sum, self.bias);
        if let Some(residual) = self.residual {
            value = simd.add_f32s(value, load::<S>(&residual[place..]));
        }
        value = simd.mul_f32s(value, self.scale);
        if self.relu {
            let zero = simd.splat_f32s(0.0);
            value = simd.select_f32s(simd.less_than_f32s(value, zero), zero, value);
        }
        value
    }
}

/// The first values, as many as a vector has.
#[inline(always)]
fn load<S: Simd>(values: &[f32]) -> S::f32s {
    // SAFETY: the slice has the lanes.
    unsafe { values[..S::F32_LANES].as_ptr().cast::<S::f32s>().read_unaligned() }
}

//! Filtered resampling by two, as EDM's networks do it.

use super::cpu::resample as cpu;
use super::{Tape, contiguous, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// Halves height and width: a depthwise convolution with `outer(filter, filter) / sum(filter)^2`, stride 2 and zero padding
/// `pad`. `x` is `[B, H, W, C]`.
pub fn down(tape: &Tape, x: &Tensor, filter: &[f32], pad: usize) -> Result<Tensor> {
    tape.apply1(Resample { filter: filter.into(), pad, up: false }, x)
}

/// Doubles height and width: the transposed convolution of [`down`] with four times its filter. `x` is `[B, H, W, C]`.
pub fn up(tape: &Tape, x: &Tensor, filter: &[f32], pad: usize) -> Result<Tensor> {
    tape.apply1(Resample { filter: filter.into(), pad, up: true }, x)
}

struct Resample {
    filter: Box<[f32]>,
    pad: usize,
    up: bool,
}

impl Resample {
    fn out_size(&self, size: usize) -> usize {
        let taps = self.filter.len();
        if self.up { cpu::up_size(size, taps, self.pad) } else { cpu::down_size(size, taps, self.pad) }
    }
}

impl CustomOp1 for Resample {
    fn name(&self) -> &'static str {
        if self.up { "upsample" } else { "downsample" }
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, height, width, channels) = layout.shape().dims4()?;
        let (out_height, out_width) = (self.out_size(height), self.out_size(width));
        let mut y = vec![0.0; batch * out_height * out_width * channels];
        let x = contiguous(self.name(), x, layout)?;
        if self.up {
            cpu::up(x, batch, height, width, channels, &self.filter, self.pad, 4.0, &mut y);
        } else {
            cpu::down(x, batch, height, width, channels, &self.filter, self.pad, 1.0, &mut y);
        }
        Ok((CpuStorage::F32(y), (batch, out_height, out_width, channels).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (batch, height, width, channels) = dy.dims4()?;
        let mut dx = vec![0.0; x.elem_count()];
        // Each direction is the other's adjoint, up to the gain.
        with_slice(dy, |dy| {
            if self.up {
                cpu::down(dy, batch, height, width, channels, &self.filter, self.pad, 4.0, &mut dx);
            } else {
                cpu::up(dy, batch, height, width, channels, &self.filter, self.pad, 1.0, &mut dx);
            }
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

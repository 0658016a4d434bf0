//! Filtered resampling by two, as EDM's networks do it.

use super::cpu::resample::{Direction, Resampler};
use super::{Tape, contiguous, gradient, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// Halves height and width: a depthwise convolution with `outer(filter, filter) / sum(filter)^2`, stride 2 and zero padding
/// `pad`. `x` is `[B, H, W, C]`.
pub fn down(tape: &Tape, x: &Tensor, filter: &[f32], pad: usize) -> Result<Tensor> {
    tape.apply1(Resample { filter: filter.into(), pad, direction: Direction::Down }, x)
}

/// Doubles height and width: the transposed convolution of [`down`] with four times its filter. `x` is `[B, H, W, C]`.
pub fn up(tape: &Tape, x: &Tensor, filter: &[f32], pad: usize) -> Result<Tensor> {
    tape.apply1(Resample { filter: filter.into(), pad, direction: Direction::Up }, x)
}

struct Resample {
    filter: Box<[f32]>,
    pad: usize,
    direction: Direction,
}

impl CustomOp1 for Resample {
    fn name(&self) -> &'static str {
        match self.direction {
            Direction::Down => "downsample",
            Direction::Up => "upsample",
        }
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, height, width, channels) = layout.shape().dims4()?;
        let size = [height, width, channels];
        let resampler = Resampler::new(self.direction, size, &self.filter, self.pad, self.direction.gain());
        let [out_height, out_width] = resampler.output();
        let mut y = vec![0.0; batch * out_height * out_width * channels];
        resampler.run(contiguous(self.name(), x, layout)?, &mut y);
        Ok((CpuStorage::F32(y), (batch, out_height, out_width, channels).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, height, width, channels) = dy.dims4()?;
        let mut dx = vec![0.0; x.elem_count()];
        // Each direction is the other's adjoint, up to the gain.
        let adjoint = match self.direction {
            Direction::Down => Direction::Up,
            Direction::Up => Direction::Down,
        };
        let size = [height, width, channels];
        let resampler = Resampler::new(adjoint, size, &self.filter, self.pad, self.direction.gain());
        with_slice(dy, |dy| resampler.run(dy, &mut dx))?;
        gradient(dx, x)
    }
}

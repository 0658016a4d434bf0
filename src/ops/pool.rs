//! The largest values or the means of neighbours.

use super::cpu::conv::Places;
use super::cpu::pool::{Pooling, Reduce};
use super::{Tape, contiguous, gradient, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// `y[b, p, c]` is the largest, or the mean, of `x[b, stride p + (i, j) - pad, c]` over the window at place p; what lies beyond
/// the map does not count. `x` is `[B, H, W, C]`.
pub fn pool(tape: &Tape, x: &Tensor, reduce: Reduce, places: Places) -> Result<Tensor> {
    tape.apply1(Pool { reduce, places }, x)
}

struct Pool {
    reduce: Reduce,
    places: Places,
}

impl Pool {
    fn on(&self, size: [usize; 2]) -> Pooling {
        Pooling { reduce: self.reduce, places: self.places, size }
    }
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, height, width, channels) = layout.shape().dims4()?;
        let [out_height, out_width] = self.places.on([height, width]);
        let mut y = vec![0.0; batch * out_height * out_width * channels];
        self.on([height, width]).run(contiguous(self.name(), x, layout)?, channels, &mut y);
        Ok((CpuStorage::F32(y), (batch, out_height, out_width, channels).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, height, width, channels) = x.dims4()?;
        let mut dx = vec![0.0; x.elem_count()];
        let pooling = self.on([height, width]);
        with_slice(x, |x| with_slice(dy, |dy| pooling.backward(x, dy, channels, &mut dx)))??;
        gradient(dx, x)
    }
}

//! LayerNorm over the channels of each pixel.

use super::cpu::layer_norm as cpu;
use super::{Tape, contiguous, gradient, with_slice};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

/// `y = (x - mean) / sqrt(var + eps) * scale + shift` over the last axis (Ba et al. 2016, eq. 4): `x` is `[..., C]`, `scale` and
/// `shift` are `[C]`.
pub fn layer_norm(tape: &Tape, x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f32) -> Result<Tensor> {
    tape.apply3(LayerNorm { eps }, x, scale, shift)
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        scale: &CpuStorage,
        ls: &Layout,
        shift: &CpuStorage,
        lt: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        let (x, scale, shift) = (contiguous(name, x, lx)?, contiguous(name, scale, ls)?, contiguous(name, shift, lt)?);
        let mut y = vec![0.0; x.len()];
        cpu::forward(x, scale, shift, self.eps, &mut y);
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut dx = vec![0.0; x.elem_count()];
        let (mut dscale, mut dshift) = (vec![0.0; scale.elem_count()], vec![0.0; shift.elem_count()]);
        with_slice(x, |x| {
            with_slice(scale, |scale| {
                with_slice(dy, |dy| cpu::backward(x, scale, self.eps, dy, &mut dx, &mut dscale, &mut dshift))
            })
        })???;
        Ok((gradient(dx, x)?, gradient(dscale, scale)?, gradient(dshift, shift)?))
    }
}

//! GroupNorm over a channel -> group table, with affine and SiLU in the same pass.

use super::cpu::group_norm::{self as cpu, GroupTable};
use super::{Tape, contiguous, gradient, with_slice};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use std::sync::Arc;

/// `y = act(xhat * scale + shift)`, where `xhat = (x - mean_g) / sqrt(var_g + eps)` over the pixels and the channels of a
/// group (Wu and He 2018) and `act` is SiLU or nothing.
///
/// `x` is `[B, H, W, C]`; `scale` and `shift` are `[C]`, or `[B, C]` (one a sample). `table` says which channels share a
/// group: it is what keeps groups together when channels are sorted and cut.
pub fn group_norm(
    tape: &Tape,
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    table: &Arc<GroupTable>,
    eps: f32,
    silu: bool,
) -> Result<Tensor> {
    tape.apply3(GroupNorm { table: table.clone(), eps, silu }, x, scale, shift)
}

struct GroupNorm {
    table: Arc<GroupTable>,
    eps: f32,
    silu: bool,
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
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
        let (batch, height, width, _) = lx.shape().dims4()?;
        let name = self.name();
        let (x, scale, shift) = (contiguous(name, x, lx)?, contiguous(name, scale, ls)?, contiguous(name, shift, lt)?);
        let mut y = vec![0.0; x.len()];
        cpu::forward(x, scale, shift, &self.table, self.eps, self.silu, batch, height * width, &mut y);
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
        let (batch, height, width, _) = x.dims4()?;
        let mut dx = vec![0.0; x.elem_count()];
        let mut dscale = vec![0.0; scale.elem_count()];
        let mut dshift = vec![0.0; shift.elem_count()];
        with_slice(x, |x| {
            with_slice(scale, |scale| {
                with_slice(shift, |shift| {
                    with_slice(dy, |dy| {
                        cpu::backward(
                            x,
                            scale,
                            shift,
                            &self.table,
                            self.eps,
                            self.silu,
                            batch,
                            height * width,
                            dy,
                            &mut dx,
                            &mut dscale,
                            &mut dshift,
                        )
                    })
                })
            })
        })????;
        Ok((gradient(dx, x)?, gradient(dscale, scale)?, gradient(dshift, shift)?))
    }
}

//! Multi-head self-attention over the pixels of a feature map.

use super::cpu::attention as cpu;
use super::{Tape, contiguous, gradient, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// `softmax(q k^T / sqrt(d)) v` per sample and head (Vaswani et al. 2017, eq. 1).
///
/// `qkv` is `[B, H, W, 3 * heads * d]`, its last axis ordered `({q,k,v}, head, channel)`; returns `[B, H, W, heads * d]`.
pub fn attention(tape: &Tape, qkv: &Tensor, heads: usize) -> Result<Tensor> {
    tape.apply1(Attention { heads }, qkv)
}

struct Attention {
    heads: usize,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, height, width, channels) = layout.shape().dims4()?;
        let dim = channels / (3 * self.heads);
        let mut out = vec![0.0; batch * height * width * self.heads * dim];
        cpu::forward(contiguous(self.name(), qkv, layout)?, batch, height * width, self.heads, dim, &mut out);
        Ok((CpuStorage::F32(out), (batch, height, width, self.heads * dim).into()))
    }

    fn bwd(&self, qkv: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let (batch, height, width, channels) = qkv.dims4()?;
        let dim = channels / (3 * self.heads);
        let mut dqkv = vec![0.0; qkv.elem_count()];
        with_slice(qkv, |qkv| {
            with_slice(dout, |dout| cpu::backward(qkv, dout, batch, height * width, self.heads, dim, &mut dqkv))
        })??;
        gradient(dqkv, qkv)
    }
}

//! Multi-head attention between the pixels of a feature map, or from those to others.

use super::cpu::attention as cpu;
use super::{Tape, contiguous, gradient, with_slice};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

/// `softmax(q k^T / sqrt(d)) v` per sample and head (Vaswani et al. 2017, eq. 1).
///
/// `qkv` is `[B, H, W, 3 * heads * d]`, its last axis ordered `({q,k,v}, head, channel)`; returns `[B, H, W, heads * d]`.
pub fn attention(tape: &Tape, qkv: &Tensor, heads: usize) -> Result<Tensor> {
    tape.apply1(Attention { heads }, qkv)
}

/// The same with the queries `q` `[B, H, W, heads * d]` of one map and the keys and values `kv` `[B, H', W', 2 * heads * d]` of another.
pub fn across(tape: &Tape, q: &Tensor, kv: &Tensor, heads: usize) -> Result<Tensor> {
    tape.apply2(Attention { heads }, q, kv)
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
        cpu::forward(contiguous("attention", qkv, layout)?, batch, height * width, self.heads, dim, &mut out);
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

impl Attention {
    fn sizes(&self, q: &Shape, kv: &Shape) -> Result<cpu::Sizes> {
        let ((batch, height, width, channels), (samples, rows, columns, others)) = (q.dims4()?, kv.dims4()?);
        if samples != batch || others != 2 * channels || !channels.is_multiple_of(self.heads) {
            candle_core::bail!("attention: queries {q:?} and keys and values {kv:?} do not fit");
        }
        let (queries, keys, dim) = (height * width, rows * columns, channels / self.heads);
        Ok(cpu::Sizes { batch, queries, keys, heads: self.heads, dim })
    }
}

impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, q: &CpuStorage, lq: &Layout, kv: &CpuStorage, lkv: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(lq.shape(), lkv.shape())?;
        let (q, kv) = (contiguous("attention", q, lq)?, contiguous("attention", kv, lkv)?);
        let mut out = vec![0.0; q.len()];
        cpu::across(q, kv, sizes, &mut out);
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }

    fn bwd(&self, q: &Tensor, kv: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = self.sizes(q.shape(), kv.shape())?;
        let (mut dq, mut dkv) = (vec![0.0; q.elem_count()], vec![0.0; kv.elem_count()]);
        with_slice(q, |q| {
            with_slice(kv, |kv| {
                with_slice(dout, |dout| cpu::backward_across([q, kv], dout, sizes, [&mut dq, &mut dkv]))
            })
        })???;
        Ok((gradient(dq, q)?, gradient(dkv, kv)?))
    }
}

//! From tokens back to an image.

use super::cpu::tokens::Patches;
use super::{Tape, contiguous, gradient, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// Tokens `[B, tokens, 1, patch * patch * C]` as an image `[B, height, width, C]`.
pub fn unpatch(tape: &Tape, x: &Tensor, patches: Patches) -> Result<Tensor> {
    tape.apply1(patches, x)
}

impl CustomOp1 for Patches {
    fn name(&self) -> &'static str {
        "unpatch"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, tokens, _, row) = layout.shape().dims4()?;
        if tokens != self.tokens() {
            candle_core::bail!("unpatch: {tokens} tokens for {self:?}");
        }
        let channels = row / (self.patch * self.patch);
        let mut y = vec![0.0; batch * self.height * self.width * channels];
        self.unpatch(contiguous(self.name(), x, layout)?, channels, &mut y);
        Ok((CpuStorage::F32(y), (batch, self.height, self.width, channels).into()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; x.elem_count()];
        let channels = y.dim(3)?;
        with_slice(dy, |dy| self.unpatch_backward(dy, channels, &mut dx))?;
        gradient(dx, x)
    }
}

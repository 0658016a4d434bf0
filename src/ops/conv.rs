//! Convolution, and linear layers as its smallest case.

use super::cpu::conv::{self as cpu, Geometry, Kernel, Places};
use super::{Tape, contiguous, gradient, with_slice};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};

/// `y = x * w + bias` with the kernel at `places`.
///
/// `x` is `[B, H, W, in]`, `w` is `[kh, kw, in, out]` with any strides (a prefix of wider weights is a view), `bias` is
/// `[out]` or `[B, out]` (one a sample). Returns `[B, H', W', out]`.
pub fn conv2d(tape: &Tape, x: &Tensor, w: &Tensor, bias: &Tensor, places: Places) -> Result<Tensor> {
    tape.apply3(Conv(places), x, w, bias)
}

/// `y = x w + bias`: `x` is `[B, in]`, `w` is `[in, out]`, `bias` is `[out]`; returns `[B, out]`.
pub fn linear(tape: &Tape, x: &Tensor, w: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let ((batch, c_in), c_out) = (x.dims2()?, w.dim(1)?);
    let x = tape.reshape(x, (batch, 1, 1, c_in))?;
    // A narrowed matrix cannot be reshaped as a view; it is small.
    let w = tape.reshape(w, (1, 1, c_in, c_out))?;
    tape.reshape(&conv2d(tape, &x, &w, bias, Places::same([1, 1]))?, (batch, c_out))
}

struct Conv(Places);

impl Conv {
    fn geometry(&self, x: &Shape, w: &Shape, bias: &Shape) -> Result<Geometry> {
        let (batch, height, width, c_in) = x.dims4()?;
        let (rows, columns, w_in, c_out) = w.dims4()?;
        let biases = bias.elem_count();
        if [rows, columns] != self.0.kernel || w_in != c_in || (biases != c_out && biases != batch * c_out) {
            candle_core::bail!("conv2d: x {x:?}, w {w:?} and bias {bias:?} do not fit");
        }
        Ok(Geometry { batch, height, width, places: self.0, c_in, c_out })
    }
}

fn kernel<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Kernel<'a>> {
    let strides = layout.stride();
    Ok(Kernel {
        data: &storage.as_slice::<f32>()?[layout.start_offset()..],
        strides: [strides[0], strides[1], strides[2], strides[3]],
    })
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        bias: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let g = self.geometry(lx.shape(), lw.shape(), lb.shape())?;
        let mut y = vec![0.0; g.batch * g.out_elements()];
        let (x, bias) = (contiguous("conv2d", x, lx)?, contiguous("conv2d", bias, lb)?);
        cpu::forward(x, kernel(w, lw)?, bias, &g, &mut y);
        Ok((CpuStorage::F32(y), (g.batch, g.out_height(), g.out_width(), g.c_out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = self.geometry(x.shape(), w.shape(), bias.shape())?;
        debug_assert_eq!(x.dtype(), DType::F32);
        let mut dx = vec![0.0; x.elem_count()];
        let mut dw = vec![0.0; w.elem_count()];
        let mut db = vec![0.0; bias.elem_count()];
        with_slice(dy, |dy| -> Result<()> {
            let (storage, layout) = w.storage_and_layout();
            let candle_core::Storage::Cpu(weights) = &*storage else {
                candle_core::bail!("conv2d: the backward pass runs on the CPU only")
            };
            cpu::backward_input(dy, kernel(weights, layout)?, &g, &mut dx);
            cpu::backward_bias(dy, &g, &mut db);
            with_slice(x, |x| cpu::backward_weights(x, dy, &g, &mut dw))
        })??;
        Ok((gradient(dx, x)?, gradient(dw, w)?, gradient(db, bias)?))
    }
}

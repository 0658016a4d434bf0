//! Residual sums, concatenation, activations, and vectors on rows.

use super::cpu::{activation, elementwise as cpu};
use super::{Act, Tape, contiguous, gradient, with_slice};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

/// `(a + b) * scale`, for tensors of one shape.
pub fn add_scale(tape: &Tape, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    tape.apply2(AddScale(scale), a, b)
}

/// `[..., A]` and `[..., B]` side by side: `[..., A + B]`.
pub fn concat(tape: &Tape, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    tape.apply2(Concat, a, b)
}

/// `act(x)`, elementwise.
pub fn act(tape: &Tape, x: &Tensor, act: Act) -> Result<Tensor> {
    tape.apply1(act, x)
}

/// `x + row` with `row` of N elements on each of the B rows of `x`: `[B, N]`.
pub fn add_row(tape: &Tape, x: &Tensor, row: &Tensor) -> Result<Tensor> {
    tape.apply2(AddRow, x, row)
}

/// `row * (1 + x)` with `row` of N elements on each of the B rows of `x`: `[B, N]`.
pub fn scale_row(tape: &Tape, row: &Tensor, x: &Tensor) -> Result<Tensor> {
    tape.apply2(ScaleRow, row, x)
}

/// `a * gelu(b)` of `x = [..., (a, b)]`, each of half of the last axis (GEGLU, Shazeer 2020).
pub fn gate(tape: &Tape, x: &Tensor) -> Result<Tensor> {
    tape.apply1(Gate, x)
}

struct AddScale(f32);

impl CustomOp2 for AddScale {
    fn name(&self) -> &'static str {
        "add_scale"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (contiguous(self.name(), a, la)?, contiguous(self.name(), b, lb)?);
        if la.shape() != lb.shape() {
            candle_core::bail!("add_scale: {:?} and {:?} differ", la.shape(), lb.shape());
        }
        let mut y = vec![0.0; a.len()];
        cpu::add_scale(a, b, self.0, &mut y);
        Ok((CpuStorage::F32(y), la.shape().clone()))
    }

    fn bwd(&self, a: &Tensor, _b: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let da = if self.0 == 1.0 {
            dy.clone()
        } else {
            let mut da = vec![0.0; dy.elem_count()];
            with_slice(dy, |dy| cpu::scale(dy, self.0, &mut da))?;
            Tensor::from_vec(da, a.shape(), a.device())?
        };
        Ok((Some(da.clone()), Some(da)))
    }
}

struct Concat;

/// Rows and last axes of two tensors that differ in the last axis only.
fn rows_and_widths(a: &[usize], b: &[usize]) -> Result<(usize, usize, usize)> {
    match (a.split_last(), b.split_last()) {
        (Some((&wa, rows_a)), Some((&wb, rows_b))) if rows_a == rows_b => Ok((rows_a.iter().product(), wa, wb)),
        _ => candle_core::bail!("concat: {a:?} and {b:?} differ before the last axis"),
    }
}

impl CustomOp2 for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, wa, wb) = rows_and_widths(la.dims(), lb.dims())?;
        let mut y = vec![0.0; rows * (wa + wb)];
        cpu::concat(contiguous(self.name(), a, la)?, wa, contiguous(self.name(), b, lb)?, wb, rows, &mut y);
        let mut dims = la.dims().to_vec();
        *dims.last_mut().expect("checked above") = wa + wb;
        Ok((CpuStorage::F32(y), dims.into()))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, wa, wb) = rows_and_widths(a.dims(), b.dims())?;
        let (mut da, mut db) = (vec![0.0; a.elem_count()], vec![0.0; b.elem_count()]);
        with_slice(dy, |dy| cpu::split(dy, wa, wb, rows, &mut da, &mut db))?;
        Ok((gradient(da, a)?, gradient(db, b)?))
    }
}

impl CustomOp1 for Act {
    fn name(&self) -> &'static str {
        "act"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(self.name(), x, layout)?;
        let mut y = vec![0.0; x.len()];
        activation::forward(*self, x, &mut y);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; x.elem_count()];
        with_slice(x, |x| with_slice(dy, |dy| activation::backward(*self, x, dy, &mut dx)))??;
        gradient(dx, x)
    }
}

struct Gate;

impl CustomOp1 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let last = dims.last_mut().filter(|last| last.is_multiple_of(2));
        let Some(last) = last else { candle_core::bail!("gate: {:?} does not divide into two", layout.shape()) };
        *last /= 2;
        let width = *last;
        let x = contiguous(self.name(), x, layout)?;
        let mut y = vec![0.0; x.len() / 2];
        activation::gate(x, width, &mut y);
        Ok((CpuStorage::F32(y), dims.into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (width, mut dx) = (dy.dim(dy.rank() - 1)?, vec![0.0; x.elem_count()]);
        with_slice(x, |x| with_slice(dy, |dy| activation::gate_backward(x, dy, width, &mut dx)))??;
        gradient(dx, x)
    }
}

struct AddRow;

impl CustomOp2 for AddRow {
    fn name(&self) -> &'static str {
        "add_row"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, row: &CpuStorage, lr: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, row) = (contiguous(self.name(), x, lx)?, contiguous(self.name(), row, lr)?);
        let sum = x.iter().zip(row.iter().cycle()).map(|(x, row)| x + row);
        Ok((CpuStorage::F32(sum.collect()), lx.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, row: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut drow = vec![0.0; row.elem_count()];
        with_slice(dy, |dy| cpu::sum_rows(dy, &mut drow))?;
        Ok((Some(dy.clone()), gradient(drow, row)?))
    }
}

struct ScaleRow;

impl CustomOp2 for ScaleRow {
    fn name(&self) -> &'static str {
        "scale_row"
    }

    fn cpu_fwd(&self, row: &CpuStorage, lr: &Layout, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (row, x) = (contiguous(self.name(), row, lr)?, contiguous(self.name(), x, lx)?);
        let scaled = x.iter().zip(row.iter().cycle()).map(|(x, row)| row * (1.0 + x));
        Ok((CpuStorage::F32(scaled.collect()), lx.shape().clone()))
    }

    fn bwd(&self, row: &Tensor, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, xs, dys) = (values(row)?, values(x)?, values(dy)?);
        let mut drow = vec![0.0; rows.len()];
        let shares: Vec<f32> = xs.iter().zip(&dys).map(|(x, dy)| dy * (1.0 + x)).collect();
        cpu::sum_rows(&shares, &mut drow);
        let dx: Vec<f32> = dys.iter().zip(rows.iter().cycle()).map(|(dy, row)| dy * row).collect();
        Ok((gradient(drow, row)?, gradient(dx, x)?))
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

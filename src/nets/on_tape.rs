//! A [`Program`] on plain tensors, recorded for gradients: what training runs, and what inference is held against.

use super::program::{Channels, Extent, Groups, NoiseEmbedding, Norm, Op, ParamId, Product, Program, Resample, View};
use super::sliced::Sliced;
use crate::Result;
use crate::ops::cpu::resample::Direction;
use crate::ops::{Tape, attention, conv, elementwise, group_norm, resample};
use candle_core::{DType, Device, Tensor};

/// The raw network F of the subnet `w`: `x` is `[B, H, W, C]`, `noise` (c_noise) and `class` have B entries; class `None`
/// is the unconditional call. Maps are `[B, H, W, C]`, vectors `[B, C]`.
///
/// # Errors
/// [`crate::Error::Tensor`] when an operation fails.
pub fn forward(
    program: &Program,
    tape: &Tape,
    w: &Sliced,
    x: &Tensor,
    noise: &[f32],
    class: &[Option<usize>],
) -> Result<Tensor> {
    let mut run = Run { program, tape, w, values: vec![x.clone()], branches: Vec::new() };
    for layer in &program.layers {
        let made = match &layer.op {
            Op::Embedding(embedding) => run.embedding(embedding, noise, class)?,
            Op::Product(product) => run.product(product)?,
            Op::Branches { x, to } => {
                for branch in to {
                    let (x, weight) = (&run.values[*x], w.at(branch.weight));
                    let made = match weight.dim(1)? {
                        0 => Tensor::zeros((x.dim(0)?, 0), DType::F32, &Device::Cpu)?,
                        _ => conv::linear(tape, x, weight, &run.bias(&branch.bias, branch.to)?)?,
                    };
                    run.branches.push(made);
                }
                // Whoever reads it reads one of them.
                run.values[*x].clone()
            }
            Op::Attention { qkv } => {
                let Channels::Heads { heads, .. } = program.values[*qkv].channels else {
                    unreachable!("attention is between heads")
                };
                match &run.values[*qkv] {
                    nothing if nothing.dim(3)? == 0 => nothing.clone(),
                    qkv => attention::attention(tape, qkv, heads)?,
                }
            }
            Op::Write { x, residual, scale } => {
                let x = run.view(x)?;
                match residual {
                    Some(residual) => elementwise::add_scale(tape, &x, &run.values[*residual], *scale)?,
                    None => x,
                }
            }
        };
        run.values.push(made);
    }
    Ok(run.values.pop().expect("the image is there"))
}

struct Run<'a> {
    program: &'a Program,
    tape: &'a Tape,
    w: &'a Sliced,
    /// All of them: gradients need most.
    values: Vec<Tensor>,
    /// What the branches made, `[B, out]` each.
    branches: Vec<Tensor>,
}

impl Run<'_> {
    fn embedding(&self, embedding: &NoiseEmbedding, noise: &[f32], class: &[Option<usize>]) -> Result<Tensor> {
        let param = |param| self.w.at(param).to_vec1::<f32>().expect("a vector of f32");
        let frequencies = embedding.frequencies.values(param);
        // Sines before cosines: EDM computes them the other way round, then swaps the halves.
        let mut values = Vec::with_capacity(noise.len() * frequencies.len() * 2);
        for &noise in noise {
            values.extend(frequencies.iter().map(|frequency| (noise * frequency).sin()));
            values.extend(frequencies.iter().map(|frequency| (noise * frequency).cos()));
        }
        let emb = Tensor::from_vec(values, (noise.len(), frequencies.len() * 2), &Device::Cpu)?;
        let Some(layer) = embedding.class else { return Ok(emb) };
        // One-hot rows, which EDM scales by the root of their length.
        let classes = self.program.classes;
        let mut rows = vec![0.0; class.len() * classes];
        for (row, class) in rows.chunks_exact_mut(classes).zip(class) {
            if let Some(class) = class.filter(|&class| class < classes) {
                row[class] = (classes as f32).sqrt();
            }
        }
        let rows = Tensor::from_vec(rows, (class.len(), classes), &Device::Cpu)?;
        let mapped = conv::linear(self.tape, &rows, self.w.at(layer.weight), self.w.at(layer.bias))?;
        Ok(elementwise::add_scale(self.tape, &emb, &mapped, 1.0)?)
    }

    fn product(&self, product: &Product) -> Result<Tensor> {
        let x = self.view(&product.x)?;
        let weight = self.w.at(product.weight);
        let bias = match product.sample_bias {
            Some(branch) => self.branches[branch].clone(),
            None => self.bias(&product.bias, product.to)?,
        };
        let mut y = match self.program.extent(&product.x) {
            Extent::Vector => conv::linear(self.tape, &x, weight, &bias)?,
            // Of a block that is left out, whose pipe has no channel: nothing is made, or the bias is all there is.
            Extent::Map { .. } if bias.elem_count() == 0 => {
                let (batch, height, width, _) = x.dims4()?;
                zeros([batch, height, width, 0])?
            }
            Extent::Map { .. } if x.dim(3)? == 0 => {
                let (batch, height, width, _) = x.dims4()?;
                let (nothing, kernel) = (zeros([batch, height, width, 1])?, zeros([1, 1, 1, bias.elem_count()])?);
                conv::conv2d(self.tape, &nothing, &kernel, &bias, 0)?
            }
            Extent::Map { .. } => {
                let weight = self.kernel(product, weight, x.dim(3)?)?;
                conv::conv2d(self.tape, &x, &weight, &bias, product.pad)?
            }
        };
        if let Some(residual) = product.residual {
            y = elementwise::add_scale(self.tape, &y, &self.values[residual], product.scale)?;
        }
        if product.silu {
            y = elementwise::silu(self.tape, &y)?;
        }
        Ok(y)
    }

    /// The weight as `[kernel, kernel, in, out]`: heads lie side by side.
    fn kernel(&self, product: &Product, weight: &Tensor, c_in: usize) -> Result<Tensor> {
        let from = self.program.values[product.x.parts[0]].channels;
        match (from, product.to) {
            (Channels::Heads { .. }, _) | (_, Channels::Heads { .. }) => {
                let c_out = weight.elem_count() / c_in;
                Ok(self.tape.reshape(weight, (1, 1, c_in, c_out))?)
            }
            _ => Ok(weight.clone()),
        }
    }

    /// The sum of these biases, `[out]`; zeros where there are none.
    fn bias(&self, params: &[ParamId], to: Channels) -> Result<Tensor> {
        let Some((first, more)) = params.split_first() else {
            let Channels::Fixed(channels) = to else { unreachable!("what has no bias is outside of blocks") };
            return Ok(Tensor::zeros(channels, DType::F32, &Device::Cpu)?);
        };
        let mut bias = self.w.at(*first).clone();
        for &more in more {
            bias = elementwise::add_scale(self.tape, &bias, self.w.at(more), 1.0)?;
        }
        match to {
            Channels::Heads { .. } => Ok(self.tape.reshape(&bias, bias.elem_count())?),
            _ => Ok(bias),
        }
    }

    fn view(&self, view: &View) -> Result<Tensor> {
        let mut x = self.values[view.parts[0]].clone();
        for &part in &view.parts[1..] {
            x = elementwise::concat(self.tape, &x, &self.values[part])?;
        }
        if x.elem_count() == 0 {
            return Ok(x);
        }
        x = match (&view.norm, view.silu) {
            (Some(norm), silu) => self.norm(norm, &x, silu)?,
            (None, true) => elementwise::silu(self.tape, &x)?,
            (None, false) => x,
        };
        match &view.resample {
            None => Ok(x),
            Some(Resample { direction: Direction::Down, filter, pad }) => {
                Ok(resample::down(self.tape, &x, filter, *pad)?)
            }
            Some(Resample { direction: Direction::Up, filter, pad }) => Ok(resample::up(self.tape, &x, filter, *pad)?),
        }
    }

    fn norm(&self, norm: &Norm, x: &Tensor, silu: bool) -> Result<Tensor> {
        let table = match &norm.groups {
            Groups::Fixed(table) => table,
            Groups::Pipe(pipe) => self.w.table(*pipe),
        };
        Ok(group_norm::group_norm(self.tape, x, self.w.at(norm.scale), self.w.at(norm.shift), table, norm.eps, silu)?)
    }
}

fn zeros(shape: [usize; 4]) -> Result<Tensor> {
    Ok(Tensor::zeros(&shape, DType::F32, &Device::Cpu)?)
}

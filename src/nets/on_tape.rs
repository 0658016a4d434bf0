//! A [`Program`] on plain tensors, recorded for gradients: what training runs, and what inference is held against.

use super::program::{
    Branch, Channels, Embedding, Extent, Inputs, Norm, Op, Over, ParamId, Pool, Product, Program, Resample, ValueId,
    View,
};
use super::sliced::Sliced;
use crate::Result;
use crate::ops::cpu::conv::Places;
use crate::ops::cpu::resample::Direction;
use crate::ops::{Act, Tape, attention, conv, elementwise, group_norm, layer_norm, pool, resample, tokens};
use candle_core::{DType, Device, Tensor};

/// The raw network F of the subnet `w` on the images `x`, `[B, H, W, C]`. Maps are `[B, H, W, C]`, vectors `[B, C]`.
///
/// # Errors
/// [`crate::Error::Tensor`] when an operation fails.
pub fn forward(program: &Program, tape: &Tape, w: &Sliced, x: &Tensor, inputs: Inputs) -> Result<Tensor> {
    let context = context(program, inputs.noise.len(), inputs.context)?;
    forward_on(program, tape, w, x, &context, inputs)
}

/// The context of [`Inputs`] of so many samples as [`forward_on`] takes it, `[B, tokens, 1, C]`; without elements where the network
/// reads none.
///
/// # Errors
/// As [`forward`].
pub fn context(program: &Program, batch: usize, context: &[f32]) -> Result<Tensor> {
    let [tokens, channels] = program.context().unwrap_or_default();
    Ok(Tensor::from_slice(context, (batch, tokens, 1, channels), &Device::Cpu)?)
}

/// As [`forward`] with a `context` that gradients may be wanted of, in place of that of the inputs.
///
/// # Errors
/// As that.
pub fn forward_on(
    program: &Program,
    tape: &Tape,
    w: &Sliced,
    x: &Tensor,
    context: &Tensor,
    Inputs { noise, class, .. }: Inputs,
) -> Result<Tensor> {
    let mut run = Run { program, tape, w, values: vec![x.clone()], branches: Vec::new() };
    for (index, layer) in program.layers.iter().enumerate() {
        let made = match &layer.op {
            Op::Embedding(embedding) => run.embedding(embedding, noise, class)?,
            Op::Product(product) => run.product(product)?,
            Op::Branches { x, to } => {
                // The parts of a layer follow each other.
                for branch in to.iter().filter(|branch| branch.part.0 == 0) {
                    let made = run.branch(&run.values[*x], branch)?;
                    run.branches.extend(made);
                }
                // Whoever reads it reads one of them.
                run.values[*x].clone()
            }
            Op::Attention { q, kv } => {
                let Channels::Heads { heads, .. } = program.values[*q].channels else {
                    unreachable!("attention is between heads")
                };
                match (&run.values[*q], &run.values[*kv]) {
                    (nothing, _) if nothing.dim(3)? == 0 => nothing.clone(),
                    (qkv, _) if q == kv => attention::attention(tape, qkv, heads)?,
                    (q, kv) => attention::across(tape, q, kv, heads)?,
                }
            }
            Op::Context => context.clone(),
            Op::Gate { x } => match &run.values[*x] {
                nothing if nothing.dim(3)? == 0 => nothing.clone(),
                x => elementwise::gate(tape, x)?,
            },
            Op::Pool(Pool { parts, reduce, places }) => pool::pool(tape, &run.beside(parts)?, *reduce, *places)?,
            Op::Write { x, residual, scale } => {
                let x = run.view(x)?;
                match residual {
                    Some(residual) => elementwise::add_scale(tape, &x, &run.values[*residual], *scale)?,
                    None => x,
                }
            }
            Op::Tokens { front, x, positions } => run.tokens(front, *x, *positions)?,
            Op::Unpatch { x, .. } => tokens::unpatch(tape, &run.values[*x], program.patches(index + 1))?,
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
    fn embedding(&self, embedding: &Embedding, noise: &[f32], class: &[Option<usize>]) -> Result<Tensor> {
        let waves = embedding.waves.as_ref().map(|waves| {
            let frequencies = waves.frequencies.values(|param| self.w.at(param).to_vec1().expect("a vector of f32"));
            let mut values = Vec::with_capacity(noise.len() * frequencies.len() * 2);
            let part = |noise: f32, of: fn(f32) -> f32| frequencies.iter().map(move |frequency| of(noise * frequency));
            for &noise in noise {
                let of: [fn(f32) -> f32; 2] =
                    if waves.cosines_first { [f32::cos, f32::sin] } else { [f32::sin, f32::cos] };
                of.into_iter().for_each(|of| values.extend(part(noise, of)));
            }
            Tensor::from_vec(values, (noise.len(), frequencies.len() * 2), &Device::Cpu)
        });
        let class = embedding.class.map(|rows| -> Result<Tensor> {
            let (weight, classes) = (self.w.at(rows.weight), self.program.classes);
            // One-hot rows; one of zeros where there is no row for none.
            let length = weight.dim(0)?;
            let mut told = vec![0.0; class.len() * length];
            for (told, class) in told.chunks_exact_mut(length).zip(class) {
                let class = class.filter(|&class| class < classes).unwrap_or(classes);
                told.get_mut(class).into_iter().for_each(|told| *told = rows.scale);
            }
            let told = Tensor::from_vec(told, (class.len(), length), &Device::Cpu)?;
            let bias = self.bias(rows.bias.as_slice(), weight.dim(1)?)?;
            Ok(conv::linear(self.tape, &told, weight, &bias)?)
        });
        match (waves.transpose()?, class.transpose()?) {
            (Some(waves), Some(class)) => Ok(elementwise::add_scale(self.tape, &waves, &class, 1.0)?),
            (waves, class) => Ok(waves.or(class).expect("an embedding is of something")),
        }
    }

    /// The parts of a layer of branches, `[B, out]` each.
    fn branch(&self, x: &Tensor, Branch { weight, bias, part: (_, parts), .. }: &Branch) -> Result<Vec<Tensor>> {
        let weight = self.w.at(*weight);
        let (c_in, all) = (weight.dim(0)?, weight.elem_count() / weight.dim(0)?);
        if all == 0 {
            return Ok(vec![Tensor::zeros((x.dim(0)?, 0), DType::F32, &Device::Cpu)?; *parts]);
        }
        let (bias, weight) = (self.bias(bias, all)?, self.tape.reshape(weight, (c_in, all))?);
        let made = conv::linear(self.tape, x, &weight, &bias)?;
        match parts {
            1 => Ok(vec![made]),
            _ => (0..*parts).map(|part| Ok(self.tape.narrow(&made, 1, part * (all / parts), all / parts)?)).collect(),
        }
    }

    /// `[B, tokens, 1, C]`
    fn tokens(&self, front: &[ValueId], x: ValueId, positions: ParamId) -> Result<Tensor> {
        let (batch, height, width, channels) = self.values[x].dims4()?;
        let mut tokens = self.tape.reshape(&self.values[x], (batch, height * width * channels))?;
        for &vector in front.iter().rev() {
            tokens = elementwise::concat(self.tape, &self.values[vector], &tokens)?;
        }
        let tokens = elementwise::add_row(self.tape, &tokens, self.w.at(positions))?;
        Ok(self.tape.reshape(&tokens, (batch, front.len() + height * width, 1, channels))?)
    }

    fn product(&self, product: &Product) -> Result<Tensor> {
        let x = self.view(&product.x)?;
        let weight = self.w.at(product.weight);
        let rows = product.places.taps() * x.dim(x.rank() - 1)?;
        let c_out = match product.to {
            Channels::Fixed(channels) => channels,
            // Without a channel on the way in nothing but the bias says how many there are.
            _ => weight.elem_count().checked_div(rows).unwrap_or(0),
        };
        let bias = match product.sample_bias {
            Some(branch) => self.branches[branch].clone(),
            None => self.bias(&product.bias, c_out)?,
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
                conv::conv2d(self.tape, &nothing, &kernel, &bias, Places::same([1, 1]))?
            }
            Extent::Map { .. } => {
                let weight = self.kernel(product, weight, x.dim(3)?)?;
                conv::conv2d(self.tape, &x, &weight, &bias, product.places)?
            }
        };
        if let Some(residual) = product.residual {
            y = elementwise::add_scale(self.tape, &y, &self.values[residual], product.scale)?;
        }
        match product.act {
            Some(act) => Ok(elementwise::act(self.tape, &y, act)?),
            None => Ok(y),
        }
    }

    /// The weight as `[rows, columns, in, out]`: heads lie side by side, and a matrix has one tap.
    fn kernel(&self, product: &Product, weight: &Tensor, c_in: usize) -> Result<Tensor> {
        match product.places.taps() {
            1 => Ok(self.tape.reshape(weight, (1, 1, c_in, weight.elem_count() / c_in))?),
            _ => Ok(weight.clone()),
        }
    }

    /// The sum of these biases, `[out]`; zeros where there are none.
    fn bias(&self, params: &[ParamId], c_out: usize) -> Result<Tensor> {
        let Some((first, more)) = params.split_first() else {
            return Ok(Tensor::zeros(c_out, DType::F32, &Device::Cpu)?);
        };
        let mut bias = self.w.at(*first).clone();
        for &more in more {
            bias = elementwise::add_scale(self.tape, &bias, self.w.at(more), 1.0)?;
        }
        match bias.rank() {
            1 => Ok(bias),
            _ => Ok(self.tape.reshape(&bias, bias.elem_count())?),
        }
    }

    /// Values with their channels side by side.
    fn beside(&self, parts: &[ValueId]) -> Result<Tensor> {
        let mut x = self.values[parts[0]].clone();
        for &part in &parts[1..] {
            x = elementwise::concat(self.tape, &x, &self.values[part])?;
        }
        Ok(x)
    }

    fn view(&self, view: &View) -> Result<Tensor> {
        let mut x = self.beside(&view.parts)?;
        if x.elem_count() == 0 {
            return Ok(x);
        }
        x = match (&view.norm, view.silu) {
            (Some(norm), silu) => self.norm(norm, &x, silu)?,
            (None, true) => elementwise::act(self.tape, &x, Act::Silu)?,
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
        let (mut scale, mut shift) = (self.w.at(norm.scale).clone(), self.w.at(norm.shift).clone());
        let table = match &norm.over {
            Over::Groups(table) => table,
            Over::PipeGroups(pipe) => self.w.table(*pipe),
            Over::Pixel => return Ok(layer_norm::layer_norm(self.tape, x, &scale, &shift, norm.eps)?),
        };
        if let Some(film) = norm.film {
            let [by, plus] = [film, film + 1].map(|branch| &self.branches[branch]);
            scale = elementwise::scale_row(self.tape, &scale, by)?;
            shift = elementwise::add_scale(self.tape, &elementwise::scale_row(self.tape, &shift, by)?, plus, 1.0)?;
        }
        Ok(group_norm::group_norm(self.tape, x, &scale, &shift, table, norm.eps, silu)?)
    }
}

fn zeros(shape: [usize; 4]) -> Result<Tensor> {
    Ok(Tensor::zeros(&shape, DType::F32, &Device::Cpu)?)
}

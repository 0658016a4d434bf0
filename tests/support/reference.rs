//! Any program in plain f64 loops, one sample at a time, without a kernel of the crate: what its layers mean.

use accordion::diffusion::preconditioning::Preconditioning;
use accordion::nets::Model;
use accordion::nets::program::{
    Branch, Channels, Embedding, Extent, Frequencies, Norm, Op, Over, Pool, Product, Program, ValueId, View,
};
use accordion::ops::Act;
use accordion::ops::cpu::conv::Places;
use accordion::ops::cpu::pool::Reduce;
use accordion::ops::cpu::resample::Direction;
use accordion::supernet::{Supernet, Widths, groups};
use std::f64::consts::TAU;

/// A subnet of a model in f64.
pub struct Reference<'a> {
    program: &'a Program,
    preconditioning: Preconditioning,
    widths: Widths,
    /// By parameter: what the subnet keeps of it.
    weights: Vec<Vec<f64>>,
    /// By pipe: the group of each kept channel.
    groups: Vec<Vec<u32>>,
    /// What a network with a context is given, `[tokens, channels]`.
    pub context: Vec<f64>,
}

/// Pixels, channels last; a vector is a map of one.
#[derive(Clone)]
struct Map {
    height: usize,
    width: usize,
    channels: usize,
    values: Vec<f64>,
}

/// A call on one sample.
struct Call<'a> {
    net: &'a Reference<'a>,
    values: Vec<Map>,
    branches: Vec<Vec<f64>>,
}

impl<'a> Reference<'a> {
    pub fn new(model: &'a Model, subnet: usize) -> Self {
        let widths = model.widths(subnet);
        Self::of(model.network.program(), &model.supernet, widths, model.card.preconditioning)
    }

    pub fn of(program: &'a Program, supernet: &Supernet, widths: Widths, preconditioning: Preconditioning) -> Self {
        let spec = &program.spec;
        let weights = spec.params.iter().zip(&supernet.params).map(|(param, tensor)| {
            let whole: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            let kept = spec.sliced_shape(param, &widths);
            let is_kept = |mut index: usize| {
                param.shape.iter().zip(&kept).rev().all(|(length, kept)| {
                    let place = index % length;
                    index /= length;
                    place < *kept
                })
            };
            whole.into_iter().enumerate().filter(|&(i, _)| is_kept(i)).map(|(_, value)| f64::from(value)).collect()
        });
        let pipes = spec.pipes.iter().zip(&supernet.permutations).zip(&widths.0);
        let groups = pipes.map(|((pipe, origin), &kept)| {
            if kept == 0 { vec![] } else { groups::membership(&origin[..kept], pipe.norm_groups.unwrap_or(1)) }
        });
        let (weights, groups) = (weights.collect(), groups.collect());
        Self { program, preconditioning, widths, weights, groups, context: Vec::new() }
    }

    /// The denoised image of `x` (Karras et al. 2022, eq. 7 and table 1).
    pub fn denoise(&self, x: &[f32], sigma: f64, class: Option<usize>) -> Vec<f64> {
        let [c_skip, c_out, c_in, c_noise] = match self.preconditioning {
            Preconditioning::Vp => {
                let (beta_d, beta_min) = (19.9, 0.1f64);
                let time = ((beta_min.powi(2) + 2.0 * beta_d * (1.0 + sigma * sigma).ln()).sqrt() - beta_min) / beta_d;
                [1.0, -sigma, 1.0 / (sigma * sigma + 1.0).sqrt(), 999.0 * time]
            }
            Preconditioning::Ve => [1.0, sigma, 1.0, (0.5 * sigma).ln()],
            Preconditioning::Ddpm { .. } => unimplemented!("held against diffusers in tests/stable_diffusion.rs"),
            Preconditioning::Edm { sigma_data } => {
                let total = sigma * sigma + sigma_data * sigma_data;
                let c_skip = sigma_data * sigma_data / total;
                [c_skip, sigma * sigma_data / total.sqrt(), 1.0 / total.sqrt(), sigma.ln() / 4.0]
            }
        };
        let raw = self.raw(x.iter().map(|&x| c_in * f64::from(x)).collect(), c_noise, class);
        x.iter().zip(&raw).map(|(&x, raw)| c_skip * f64::from(x) + c_out * raw).collect()
    }

    /// The raw network's output.
    pub fn raw(&self, values: Vec<f64>, c_noise: f64, class: Option<usize>) -> Vec<f64> {
        let image = self.program.image;
        let image = Map { height: image.height, width: image.width, channels: image.channels, values };
        let mut call = Call { net: self, values: vec![image], branches: Vec::new() };
        for index in 0..self.program.layers.len() {
            let made = call.layer(index, c_noise, class);
            call.values.push(made);
        }
        call.values.pop().unwrap().values
    }
}

fn vector(values: Vec<f64>) -> Map {
    Map { height: 1, width: 1, channels: values.len(), values }
}

fn silu(z: f64) -> f64 {
    z / (1.0 + (-z).exp())
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

impl Call<'_> {
    fn weight(&self, param: usize) -> &[f64] {
        &self.net.weights[param]
    }

    fn kept(&self, channels: Channels) -> usize {
        channels.kept(&self.net.widths)
    }

    fn layer(&mut self, index: usize, c_noise: f64, class: Option<usize>) -> Map {
        let program = self.net.program;
        match &program.layers[index].op {
            Op::Embedding(embedding) => vector(self.embedding(embedding, c_noise, class)),
            Op::Product(product) => self.product(product),
            Op::Branches { x, to } => {
                self.branches = to.iter().map(|branch| self.branch(&self.values[*x].values, branch)).collect();
                vector(vec![])
            }
            Op::Attention { q, kv } => {
                let Channels::Heads { heads, pipe, .. } = program.values[*q].channels else { panic!("heads") };
                attention(&self.values[*q], &self.values[*kv], heads, self.net.widths.0[pipe])
            }
            Op::Context => {
                let height = program.values[self.values.len()].extent.pixels();
                let values: Vec<f64> = self.net.context.clone();
                Map { height, width: 1, channels: values.len() / height, values }
            }
            Op::Gate { x } => {
                let x = &self.values[*x];
                let channels = x.channels / 2;
                let pixels = x.values.chunks_exact((2 * channels).max(1));
                let gated =
                    |pixel: &[f64]| (0..channels).map(|c| pixel[c] * gelu(pixel[channels + c])).collect::<Vec<_>>();
                Map { channels, values: pixels.flat_map(gated).collect(), ..*x }
            }
            Op::Pool(Pool { parts, reduce, places }) => pool(&self.beside(parts), *reduce, *places),
            Op::Write { x, residual, scale } => {
                let mut y = self.view(x);
                let residual = residual.map_or(vec![0.0; y.values.len()], |value| self.values[value].values.clone());
                y.values.iter_mut().zip(residual).for_each(|(y, residual)| *y = (*y + residual) * f64::from(*scale));
                y
            }
            Op::Tokens { front, x, positions } => {
                let parts = front.iter().chain([x]).map(|&part| self.values[part].values.clone());
                let mut values: Vec<f64> = parts.flatten().collect();
                values.iter_mut().zip(self.weight(*positions)).for_each(|(value, position)| *value += position);
                let channels = self.values[*x].channels;
                Map { height: values.len() / channels, width: 1, channels, values }
            }
            Op::Unpatch { x, patch } => self.unpatch(*x, *patch, program.values[index + 1].extent),
        }
    }

    fn embedding(&self, Embedding { waves, class: rows }: &Embedding, c_noise: f64, class: Option<usize>) -> Vec<f64> {
        let mut emb = Vec::new();
        if let Some(waves) = waves {
            let frequencies: Vec<f64> = match &waves.frequencies {
                Frequencies::Fixed(frequencies) => frequencies.iter().map(|&f| f64::from(f)).collect(),
                Frequencies::Param(param) => self.weight(*param).iter().map(|f| TAU * f).collect(),
            };
            emb.extend(frequencies.iter().map(|f| (f * c_noise).sin()));
            emb.extend(frequencies.iter().map(|f| (f * c_noise).cos()));
            emb.rotate_left(if waves.cosines_first { frequencies.len() } else { 0 });
        }
        if let Some(rows) = rows {
            let param = &self.net.program.spec.params[rows.weight];
            emb.resize(param.shape[1], 0.0);
            // A row for none may stand after those of the classes.
            let row = class.unwrap_or(self.net.program.classes);
            for (channel, emb) in emb.iter_mut().enumerate() {
                let value = self.weight(rows.weight).get(row * param.shape[1] + channel);
                *emb += value.map_or(0.0, |value| f64::from(rows.scale) * value);
                *emb += rows.bias.map_or(0.0, |bias| self.weight(bias)[channel]);
            }
        }
        emb
    }

    fn branch(&self, x: &[f64], Branch { weight, bias, part: (part, parts), to }: &Branch) -> Vec<f64> {
        let outputs = self.kept(*to);
        let output = |o: usize| {
            let column = part * outputs + o;
            let row = |i: usize| self.weight(*weight)[i * parts * outputs + column];
            let sum = x.iter().enumerate().map(|(i, x)| x * row(i)).sum::<f64>();
            sum + bias.iter().map(|&bias| self.weight(bias)[column]).sum::<f64>()
        };
        (0..outputs).map(output).collect()
    }

    fn product(&self, product: &Product) -> Map {
        let x = self.view(&product.x);
        let c_out = self.kept(product.to);
        let mut bias = vec![0.0; c_out];
        for from in product.bias.iter().map(|&bias| self.weight(bias)) {
            bias.iter_mut().zip(from).for_each(|(bias, from)| *bias += from);
        }
        if let Some(branch) = product.sample_bias {
            bias.clone_from(&self.branches[branch]);
        }
        let mut y = conv(&x, self.weight(product.weight), &bias, product.places);
        if let Some(residual) = product.residual {
            y.values.iter_mut().zip(&self.values[residual].values).for_each(|(y, residual)| *y += residual);
        }
        for y in &mut y.values {
            *y *= f64::from(product.scale);
            *y = match product.act {
                Some(Act::Silu) => silu(*y),
                Some(Act::Gelu) => gelu(*y),
                Some(Act::Relu) => y.max(0.0),
                None => *y,
            };
        }
        y
    }

    /// `y[(i p + a), (j p + b), c] = x[front + i (width / p) + j, (a p + b) C + c]`
    fn unpatch(&self, x: ValueId, patch: usize, extent: Extent) -> Map {
        let (x, Extent::Map { height, width }) = (&self.values[x], extent) else { panic!("an image") };
        let (across, channels) = (width / patch, x.channels / (patch * patch));
        let front = x.height - height / patch * across;
        let mut values = Vec::with_capacity(height * width * channels);
        for (row, column) in (0..height).flat_map(|row| (0..width).map(move |column| (row, column))) {
            let token = front + row / patch * across + column / patch;
            let place = row % patch * patch + column % patch;
            values.extend(&x.values[token * x.channels + place * channels..][..channels]);
        }
        Map { height, width, channels, values }
    }

    /// Values with their channels side by side.
    fn beside(&self, parts: &[ValueId]) -> Map {
        let first = self.values[parts[0]].clone();
        parts[1..].iter().fold(first, |x, &part| beside(&x, &self.values[part]))
    }

    fn view(&self, view: &View) -> Map {
        let mut x = self.beside(&view.parts);
        if let Some(norm) = view.norm.as_ref().filter(|_| x.channels > 0) {
            x = self.norm(norm, x);
        }
        if view.silu {
            x.values.iter_mut().for_each(|x| *x = silu(*x));
        }
        match &view.resample {
            Some(by) if by.direction == Direction::Down => down(&x, &by.filter, by.pad),
            Some(by) => up(&x, &by.filter, by.pad),
            None => x,
        }
    }

    /// Mean and biased variance over the pixels and channels of each group (Wu and He 2018), or over those of a pixel.
    fn norm(&self, norm: &Norm, mut x: Map) -> Map {
        let group_of = match &norm.over {
            Over::Groups(table) => table.group_of(),
            Over::PipeGroups(pipe) => &self.net.groups[*pipe],
            Over::Pixel => &vec![0; x.channels][..],
        };
        let share = if matches!(norm.over, Over::Pixel) { x.channels } else { x.values.len() };
        let count = group_of.iter().max().unwrap() + 1;
        let channels = x.channels;
        for values in x.values.chunks_exact_mut(share) {
            for group in 0..count {
                let members = || (0..values.len()).filter(|i| group_of[i % channels] == group);
                let over =
                    |of: &dyn Fn(f64) -> f64| members().map(|i| of(values[i])).sum::<f64>() / members().count() as f64;
                let mean = over(&|x| x);
                let deviation = (over(&|x| (x - mean).powi(2)) + f64::from(norm.eps)).sqrt();
                for i in members().collect::<Vec<_>>() {
                    values[i] = (values[i] - mean) / deviation;
                }
            }
        }
        let (scale, shift) = (self.weight(norm.scale), self.weight(norm.shift));
        for pixel in x.pixels() {
            for (c, x) in pixel.iter_mut().enumerate() {
                *x = *x * scale[c] + shift[c];
                if let Some(film) = norm.film {
                    *x = *x * (1.0 + self.branches[film][c]) + self.branches[film + 1][c];
                }
            }
        }
        x
    }
}

/// The first part of `q` has the queries, the last two of `kv` keys and values; in each part heads follow each other.
fn attention(q: &Map, kv: &Map, heads: usize, dim: usize) -> Map {
    let [queries, keys] = [q, kv].map(|map| map.height * map.width);
    let mut y = Map { channels: heads * dim, values: vec![0.0; queries * heads * dim], ..*q };
    let part = |map: &Map, pixel: usize, first: usize| map.values[pixel * map.channels + first..][..dim].to_vec();
    for head in 0..if dim > 0 { heads } else { 0 } {
        // Parts before the last two or the last.
        let of = |key: usize, last: usize| part(kv, key, kv.channels - last * heads * dim + head * dim);
        for pixel in 0..queries {
            let q = part(q, pixel, head * dim);
            let dot = |k: Vec<f64>| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt();
            let scores: Vec<f64> = (0..keys).map(|key| dot(of(key, 2))).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - most).exp()).sum();
            let mixed = &mut y.values[pixel * heads * dim + head * dim..][..dim];
            for (key, score) in scores.iter().enumerate() {
                let share = (score - most).exp() / total;
                mixed.iter_mut().zip(of(key, 1)).for_each(|(mixed, v)| *mixed += share * v);
            }
        }
    }
    y
}

/// Cross-correlation with a kernel `[kh, kw, in, out]`, padded with zeros, and a bias.
fn conv(x: &Map, weight: &[f64], bias: &[f64], places: Places) -> Map {
    let Places { kernel, stride, pad, .. } = places;
    let (c_in, c_out) = (x.channels, bias.len());
    let [height, width] = places.on([x.height, x.width]);
    if c_out == 0 {
        return Map { height, width, channels: 0, values: Vec::new() };
    }
    let mut values = vec![0.0; height * width * c_out];
    for (row, y) in values.chunks_exact_mut(width * c_out).enumerate() {
        y.chunks_exact_mut(c_out).for_each(|pixel| pixel.copy_from_slice(bias));
        for (ky, kx) in (0..kernel[0]).flat_map(|ky| (0..kernel[1]).map(move |kx| (ky, kx))) {
            let Some(from_row) = (row * stride + ky).checked_sub(pad[0]).filter(|&row| row < x.height) else {
                continue;
            };
            let columns = (0..width).filter_map(|column| {
                let from = (column * stride + kx).checked_sub(pad[1]).filter(|&from| from < x.width)?;
                Some((column, (from_row * x.width + from) * x.channels))
            });
            let columns: Vec<(usize, usize)> = columns.collect();
            let weights = &weight[(ky * kernel[1] + kx) * c_in * c_out..];
            vectorised(
                #[inline(always)]
                || {
                    for channel in 0..c_in {
                        let w = &weights[channel * c_out..][..c_out];
                        for &(column, from) in &columns {
                            let value = x.values[from + channel];
                            let y = &mut y[column * c_out..][..c_out];
                            y.iter_mut().zip(w).for_each(|(y, w)| *y += value * w);
                        }
                    }
                },
            );
        }
    }
    Map { height, width, channels: c_out, values }
}

/// The largest or the mean of the pixels of each window that lie on the map.
fn pool(x: &Map, reduce: Reduce, places: Places) -> Map {
    let Places { kernel, stride, pad, .. } = places;
    let [height, width] = places.on([x.height, x.width]);
    let under = |place: usize, axis: usize, side: usize| {
        (0..kernel[axis]).filter_map(move |tap| (place * stride + tap).checked_sub(pad[axis]).filter(|&at| at < side))
    };
    let mut y = Map { height, width, channels: x.channels, values: vec![0.0; height * width * x.channels] };
    for (place, y) in y.pixels().enumerate() {
        for (channel, y) in y.iter_mut().enumerate() {
            let rows = under(place / width, 0, x.height);
            let pixels = rows.flat_map(|row| under(place % width, 1, x.width).map(move |column| (row, column)));
            let values = pixels.map(|(row, column)| x.values[(row * x.width + column) * x.channels + channel]);
            let values: Vec<f64> = values.collect();
            *y = match reduce {
                Reduce::Max => values.into_iter().fold(f64::NEG_INFINITY, f64::max),
                Reduce::Mean => values.iter().sum::<f64>() / values.len() as f64,
            };
        }
    }
    y
}

/// Lets the compiler use this machine's vectors for a plain loop.
#[inline(always)]
fn vectorised(body: impl FnOnce()) {
    pulp::Arch::new().dispatch(body);
}

impl Map {
    fn pixels(&mut self) -> impl Iterator<Item = &mut [f64]> {
        self.values.chunks_exact_mut(self.channels.max(1))
    }
}

/// The pixels of both with their channels side by side.
fn beside(a: &Map, b: &Map) -> Map {
    let pixels = a.values.chunks_exact(a.channels).zip(b.values.chunks_exact(b.channels));
    let values = pixels.flat_map(|(a, b)| a.iter().chain(b)).copied().collect();
    Map { channels: a.channels + b.channels, values, ..*a }
}

/// The 2-D filter `f f' / (sum f)²` at a tap.
fn tap(filter: &[f32], i: usize, j: usize) -> f64 {
    let sum: f64 = filter.iter().map(|&f| f64::from(f)).sum();
    f64::from(filter[i]) * f64::from(filter[j]) / (sum * sum)
}

/// PyTorch's `conv2d(x, filter, stride=2, padding=pad)` by channel.
fn down(x: &Map, filter: &[f32], pad: usize) -> Map {
    let shrunk = |side: usize| (side + 2 * pad - filter.len()) / 2 + 1;
    let (height, width) = (shrunk(x.height), shrunk(x.width));
    let mut y = Map { height, width, channels: x.channels, values: vec![0.0; height * width * x.channels] };
    for (place, y) in y.pixels().enumerate() {
        for (i, j) in (0..filter.len()).flat_map(|i| (0..filter.len()).map(move |j| (i, j))) {
            let at = |place: usize, tap: usize, side: usize| (2 * place + tap).checked_sub(pad).filter(|&at| at < side);
            if let (Some(row), Some(column)) = (at(place / width, i, x.height), at(place % width, j, x.width)) {
                let x = &x.values[(row * x.width + column) * x.channels..][..x.channels];
                y.iter_mut().zip(x).for_each(|(y, x)| *y += tap(filter, i, j) * x);
            }
        }
    }
    y
}

/// PyTorch's `conv_transpose2d(x, 4 filter, stride=2, padding=pad)` by channel.
fn up(x: &Map, filter: &[f32], pad: usize) -> Map {
    let grown = |side: usize| (side - 1) * 2 + filter.len() - 2 * pad;
    let (height, width) = (grown(x.height), grown(x.width));
    let mut y = Map { height, width, channels: x.channels, values: vec![0.0; height * width * x.channels] };
    for (place, x_pixel) in x.values.chunks_exact(x.channels).enumerate() {
        for (i, j) in (0..filter.len()).flat_map(|i| (0..filter.len()).map(move |j| (i, j))) {
            let at = |place: usize, tap: usize, side: usize| (2 * place + tap).checked_sub(pad).filter(|&at| at < side);
            if let (Some(row), Some(column)) = (at(place / x.width, i, height), at(place % x.width, j, width)) {
                let y = &mut y.values[(row * width + column) * x.channels..][..x.channels];
                y.iter_mut().zip(x_pixel).for_each(|(y, x)| *y += 4.0 * tap(filter, i, j) * x);
            }
        }
    }
    y
}

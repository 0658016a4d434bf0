//! SongUNet in plain f64 loops, one sample at a time: after its definition (NVlabs/edm, `training/networks.py`; subnets as
//! in the README of the golden values) and the layouts that the spec names, without a kernel or a forward pass of the crate.

use accordion::diffusion::preconditioning::Preconditioning;
use accordion::nets::Backbone;
use accordion::nets::Model;
use accordion::nets::song_unet::{Config, EmbeddingType, Encoder};
use accordion::supernet::groups;
use std::collections::{BTreeMap, HashMap};
use std::f64::consts::{FRAC_1_SQRT_2, TAU};

const EPS: f64 = 1e-6;

/// A model's weights in f64.
pub struct Reference {
    config: Config,
    preconditioning: Preconditioning,
    weights: HashMap<String, Array>,
    /// By pipe: the original channel at each position.
    permutations: HashMap<String, Vec<u32>>,
}

/// A parameter at full width.
struct Array {
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// Pixels, channels last.
#[derive(Clone)]
struct Map {
    height: usize,
    width: usize,
    channels: usize,
    values: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Resampling {
    Keep,
    Down,
    Up,
}

/// A forward pass of one subnet on one sample.
struct Pass<'a> {
    net: &'a Reference,
    /// Kept channels by pipe.
    widths: &'a BTreeMap<String, usize>,
    emb: Vec<f64>,
}

impl Reference {
    pub fn new(model: &Model) -> Self {
        let Backbone::SongUnet(config) = &model.card.backbone;
        let spec = model.network.spec();
        let weights = spec.params.iter().zip(&model.supernet.params).map(|(param, tensor)| {
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            let values = values.into_iter().map(f64::from).collect();
            (param.name.clone(), Array { shape: param.shape.clone(), values })
        });
        let permutations = spec.pipes.iter().zip(&model.supernet.permutations);
        Self {
            config: config.clone(),
            preconditioning: model.card.preconditioning,
            weights: weights.collect(),
            permutations: permutations.map(|(pipe, origin)| (pipe.name.clone(), origin.clone())).collect(),
        }
    }

    /// The denoised image of `x` through the subnet of these widths (Karras et al. 2022, eq. 7 and table 1).
    pub fn denoise(&self, widths: &BTreeMap<String, usize>, x: &[f32], sigma: f64, class: Option<usize>) -> Vec<f64> {
        let [c_skip, c_out, c_in, c_noise] = match self.preconditioning {
            Preconditioning::Vp => {
                let (beta_d, beta_min) = (19.9, 0.1f64);
                let time = ((beta_min.powi(2) + 2.0 * beta_d * (1.0 + sigma * sigma).ln()).sqrt() - beta_min) / beta_d;
                [1.0, -sigma, 1.0 / (sigma * sigma + 1.0).sqrt(), 999.0 * time]
            }
            Preconditioning::Ve => [1.0, sigma, 1.0, (0.5 * sigma).ln()],
            Preconditioning::Edm { sigma_data } => {
                let total = sigma * sigma + sigma_data * sigma_data;
                let c_skip = sigma_data * sigma_data / total;
                [c_skip, sigma * sigma_data / total.sqrt(), 1.0 / total.sqrt(), sigma.ln() / 4.0]
            }
        };
        let side = self.config.img_resolution;
        let values = x.iter().map(|&x| c_in * f64::from(x)).collect();
        let input = Map { height: side, width: side, channels: self.config.img_channels, values };
        let pass = Pass { net: self, widths, emb: self.embedding(c_noise, class) };
        let raw = pass.raw(input);
        x.iter().zip(&raw.values).map(|(&x, raw)| c_skip * f64::from(x) + c_out * raw).collect()
    }

    fn array(&self, name: &str) -> &Array {
        self.weights.get(name).unwrap_or_else(|| panic!("the model has no {name}"))
    }

    /// The noise level and the class, as all blocks see them.
    fn embedding(&self, c_noise: f64, class: Option<usize>) -> Vec<f64> {
        let half = self.config.model_channels * self.config.channel_mult_noise / 2;
        let frequencies: Vec<f64> = match self.config.embedding_type {
            EmbeddingType::Positional => {
                (0..half).map(|i| (1.0 / 10000.0f64).powf(i as f64 / (half - 1).max(1) as f64)).collect()
            }
            EmbeddingType::Fourier => self.array("map_noise.freqs").values.iter().map(|f| TAU * f).collect(),
        };
        // EDM puts cosines first, then swaps the halves.
        let sines = frequencies.iter().map(|f| (f * c_noise).sin());
        let mut emb: Vec<f64> = sines.chain(frequencies.iter().map(|f| (f * c_noise).cos())).collect();
        let classes = self.config.label_dim;
        if classes > 0 {
            let label: Vec<f64> =
                (0..classes).map(|i| if class == Some(i) { (classes as f64).sqrt() } else { 0.0 }).collect();
            let mapped = self.linear("map_label", &label, emb.len());
            emb.iter_mut().zip(mapped).for_each(|(emb, mapped)| *emb += mapped);
        }
        for layer in ["map_layer0", "map_layer1"] {
            emb = self.linear(layer, &emb, self.config.model_channels * self.config.channel_mult_emb);
            emb.iter_mut().for_each(|value| *value = silu(*value));
        }
        emb
    }

    /// The first `outputs` of `x w + b`, with `w` as `[in, out]`.
    fn linear(&self, name: &str, x: &[f64], outputs: usize) -> Vec<f64> {
        let (weight, bias) = (self.array(&format!("{name}.weight")), self.array(&format!("{name}.bias")));
        let mut y = bias.values[..outputs].to_vec();
        for (x, row) in x.iter().zip(weight.values.chunks_exact(weight.shape[1])) {
            y.iter_mut().zip(row).for_each(|(y, w)| *y += x * w);
        }
        y
    }

    /// The groups of the `whole` channels that a norm has in the network that was trained.
    fn groups(whole: usize) -> usize {
        (whole / 4).min(32)
    }
}

fn silu(z: f64) -> f64 {
    z / (1.0 + (-z).exp())
}

impl Pass<'_> {
    fn raw(&self, image: Map) -> Map {
        let config = &self.net.config;
        let levels = config.channel_mult.len();
        let channels = |level: usize| config.model_channels * config.channel_mult[level];
        let mut skips: Vec<Map> = Vec::new();
        let mut aux = image.clone();
        let mut x = image;
        for level in 0..levels {
            let res = config.img_resolution >> level;
            let name = |layer: &str| format!("enc.{res}x{res}_{layer}");
            if level == 0 {
                x = self.conv(&name("conv"), &x, config.model_channels, 1);
            } else {
                let c_out = x.channels;
                x = self.block(&name("down"), &x, c_out, Resampling::Down, false);
                if config.encoder_type == Encoder::Residual {
                    skips.push(x.clone());
                    x = self.aux_residual(&name("aux_residual"), &aux, &x);
                    aux = x.clone();
                    skips.pop();
                }
            }
            skips.push(x.clone());
            for index in 0..config.num_blocks {
                let attention = config.attn_resolutions.contains(&res);
                x = self.block(&name(&format!("block{index}")), &x, channels(level), Resampling::Keep, attention);
                skips.push(x.clone());
            }
        }
        for level in (0..levels).rev() {
            let res = config.img_resolution >> level;
            let name = |layer: &str| format!("dec.{res}x{res}_{layer}");
            let c_out = x.channels;
            if level + 1 == levels {
                x = self.block(&name("in0"), &x, c_out, Resampling::Keep, true);
                x = self.block(&name("in1"), &x, c_out, Resampling::Keep, false);
            } else {
                x = self.block(&name("up"), &x, c_out, Resampling::Up, false);
            }
            for index in 0..=config.num_blocks {
                x = beside(&x, &skips.pop().unwrap());
                let attention = index == config.num_blocks && config.attn_resolutions.contains(&res);
                x = self.block(&name(&format!("block{index}")), &x, channels(level), Resampling::Keep, attention);
            }
        }
        let res = config.img_resolution;
        let c_out = x.channels;
        let x = self.norm(&format!("dec.{res}x{res}_aux_norm"), x, &fixed_groups(c_out), true);
        self.conv(&format!("dec.{res}x{res}_aux_conv"), &x, config.img_channels, 1)
    }

    /// `(x + down(conv(aux))) / sqrt 2`, convolved on the finer grid with room for the filter.
    fn aux_residual(&self, name: &str, aux: &Map, x: &Map) -> Map {
        let filter = &self.net.config.resample_filter;
        let wide = self.conv(name, aux, x.channels, 1 + (filter.len() - 1) / 2);
        added(down(&wide, filter, 0), x)
    }

    fn block(&self, name: &str, x: &Map, c_out: usize, resampling: Resampling, attention: bool) -> Map {
        let inner = self.kept(&format!("{name}.conv"), c_out);
        let h = self.norm(&format!("{name}.norm0"), x.clone(), &fixed_groups(x.channels), true);
        let mut h = self.conv(&format!("{name}.conv0"), &self.resampled(&h, resampling), inner, 1);
        let params = self.net.linear(&format!("{name}.affine"), &self.emb, inner);
        h.pixels().for_each(|pixel| pixel.iter_mut().zip(&params).for_each(|(h, param)| *h += param));
        let h = self.norm(&format!("{name}.norm1"), h, &self.pipe_groups(&format!("{name}.conv"), c_out), true);
        let h = self.conv(&format!("{name}.conv1"), &h, c_out, 1);
        let skip = if x.channels != c_out || resampling != Resampling::Keep {
            self.conv(&format!("{name}.skip"), &self.resampled(x, resampling), c_out, 0)
        } else {
            x.clone()
        };
        let x = added(h, &skip);
        if attention { self.attention(name, x) } else { x }
    }

    /// Channels kept of a pipe that is `whole` wide; a block without one keeps all.
    fn kept(&self, pipe: &str, whole: usize) -> usize {
        self.widths.get(pipe).copied().unwrap_or(whole)
    }

    /// The group of each kept channel of a pipe.
    fn pipe_groups(&self, pipe: &str, whole: usize) -> Vec<u32> {
        match self.net.permutations.get(pipe) {
            Some(origin) => groups::membership(&origin[..self.kept(pipe, whole)], Reference::groups(whole)),
            None => fixed_groups(whole),
        }
    }

    fn attention(&self, name: &str, x: Map) -> Map {
        let normed = self.norm(&format!("{name}.norm2"), x.clone(), &fixed_groups(x.channels), false);
        let (weight, bias) =
            (self.net.array(&format!("{name}.qkv.weight")), self.net.array(&format!("{name}.qkv.bias")));
        let proj = self.net.array(&format!("{name}.proj.weight"));
        let [_, _, heads, full] = weight.shape[..] else { panic!("shape of {name}.qkv.weight") };
        let dim = self.kept(&format!("{name}.attn"), full);
        let pixels = x.height * x.width;
        let mut hidden = vec![0.0; x.values.len()];
        let proj_bias = &self.net.array(&format!("{name}.proj.bias")).values;
        hidden.chunks_exact_mut(x.channels).for_each(|pixel| pixel.copy_from_slice(proj_bias));
        if dim == 0 {
            return added(Map { values: hidden, ..x }, &x);
        }
        for head in 0..heads {
            // q, k and v: [pixels, dim].
            let [q, k, v] = [0, 1, 2].map(|part| {
                let mut y = vec![0.0; pixels * dim];
                for (y, x) in y.chunks_exact_mut(dim).zip(normed.values.chunks_exact(normed.channels)) {
                    y.copy_from_slice(&bias.values[(part * heads + head) * full..][..dim]);
                    for (i, x) in x.iter().enumerate() {
                        let row = &weight.values[((i * 3 + part) * heads + head) * full..][..dim];
                        y.iter_mut().zip(row).for_each(|(y, w)| *y += x * w);
                    }
                }
                y
            });
            for (q, hidden) in q.chunks_exact(dim).zip(hidden.chunks_exact_mut(x.channels)) {
                let dot = |k: &[f64]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt();
                let scores: Vec<f64> = k.chunks_exact(dim).map(dot).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|score| (score - most).exp()).sum();
                let mut mixed = vec![0.0; dim];
                for (score, v) in scores.iter().zip(v.chunks_exact(dim)) {
                    let share = (score - most).exp() / total;
                    mixed.iter_mut().zip(v).for_each(|(mixed, v)| *mixed += share * v);
                }
                for (offset, mixed) in mixed.iter().enumerate() {
                    let row = &proj.values[(head * full + offset) * x.channels..][..x.channels];
                    hidden.iter_mut().zip(row).for_each(|(hidden, w)| *hidden += mixed * w);
                }
            }
        }
        added(Map { values: hidden, ..x }, &x)
    }

    /// GroupNorm (Wu and He 2018): mean and biased variance over the pixels and channels of each group.
    fn norm(&self, name: &str, mut x: Map, group_of: &[u32], silu_follows: bool) -> Map {
        if x.channels == 0 {
            return x;
        }
        let scale = &self.net.array(&format!("{name}.weight")).values;
        let shift = &self.net.array(&format!("{name}.bias")).values;
        let count = group_of.iter().max().unwrap() + 1;
        let pixels = (x.height * x.width) as f64;
        let over = |x: &Map, group: u32, value: &dyn Fn(f64) -> f64| {
            let members: Vec<usize> = (0..x.channels).filter(|&c| group_of[c] == group).collect();
            let of_pixel = |pixel: &[f64]| members.iter().map(|&c| value(pixel[c])).sum::<f64>();
            x.values.chunks_exact(x.channels).map(of_pixel).sum::<f64>() / (pixels * members.len() as f64)
        };
        let moments: Vec<(f64, f64)> = (0..count)
            .map(|group| {
                let mean = over(&x, group, &|x| x);
                (mean, (over(&x, group, &|x| (x - mean).powi(2)) + EPS).sqrt())
            })
            .collect();
        x.pixels().for_each(|pixel| {
            for (c, x) in pixel.iter_mut().enumerate() {
                let (mean, deviation) = moments[group_of[c] as usize];
                *x = (*x - mean) / deviation * scale[c] + shift[c];
                if silu_follows {
                    *x = silu(*x);
                }
            }
        });
        x
    }

    /// Cross-correlation with the first inputs and outputs of a kernel `[kh, kw, in, out]`, padded with zeros, and its bias.
    fn conv(&self, name: &str, x: &Map, c_out: usize, pad: usize) -> Map {
        let weight = self.net.array(&format!("{name}.weight"));
        let bias = &self.net.array(&format!("{name}.bias")).values[..c_out];
        let [kernel, _, full_in, full_out] = weight.shape[..] else { panic!("shape of {name}.weight") };
        let grown = |side: usize| side + 2 * pad + 1 - kernel;
        let (height, width) = (grown(x.height), grown(x.width));
        if c_out == 0 {
            return Map { height, width, channels: 0, values: Vec::new() };
        }
        let mut values = vec![0.0; height * width * c_out];
        for (row, y) in values.chunks_exact_mut(width * c_out).enumerate() {
            y.chunks_exact_mut(c_out).for_each(|pixel| pixel.copy_from_slice(bias));
            for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
                let Some(from_row) = (row + ky).checked_sub(pad).filter(|&row| row < x.height) else { continue };
                let columns = (0..width).filter_map(|column| {
                    let from = (column + kx).checked_sub(pad).filter(|&from| from < x.width)?;
                    Some((column, (from_row * x.width + from) * x.channels))
                });
                let columns: Vec<(usize, usize)> = columns.collect();
                let weights = &weight.values[(ky * kernel + kx) * full_in * full_out..];
                vectorised(
                    #[inline(always)]
                    || {
                        for channel in 0..x.channels {
                            let w = &weights[channel * full_out..][..c_out];
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

    fn resampled(&self, x: &Map, resampling: Resampling) -> Map {
        let filter = &self.net.config.resample_filter;
        let pad = (filter.len() - 1) / 2;
        match resampling {
            Resampling::Keep => x.clone(),
            Resampling::Down => down(x, filter, pad),
            Resampling::Up => up(x, filter, pad),
        }
    }
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

/// Neighbours share a group, as PyTorch has them.
fn fixed_groups(channels: usize) -> Vec<u32> {
    let share = channels / Reference::groups(channels);
    (0..channels).map(|channel| (channel / share) as u32).collect()
}

fn beside(a: &Map, b: &Map) -> Map {
    let pixels = a.values.chunks_exact(a.channels).zip(b.values.chunks_exact(b.channels));
    let values = pixels.flat_map(|(a, b)| a.iter().chain(b)).copied().collect();
    Map { channels: a.channels + b.channels, values, ..*a }
}

/// `(a + b) / sqrt 2`
fn added(mut a: Map, b: &Map) -> Map {
    a.values.iter_mut().zip(&b.values).for_each(|(a, b)| *a = (*a + b) * FRAC_1_SQRT_2);
    a
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

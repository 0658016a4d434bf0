//! Every CUDA kernel against f64, in all three types: on the CPU's emulation under every schedule of threads, and, where there is
//! one, on a GPU (`cargo test --release --features cuda --test kernels -- --ignored gpu`).
//!
//! Where the CPU has an op of its own, the same case holds it to the same values.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/emulated.rs"]
mod emulated;
#[path = "support/lab.rs"]
mod lab;

use accordion::ImageShape;
use accordion::ops::Act;
use accordion::ops::cpu::conv::Places;
use accordion::ops::cpu::group_norm::GroupTable;
use accordion::ops::cpu::resample::Direction;
use accordion::ops::cuda::conv::{Epilogue, Weights, conv, pack, pack_bias};
use accordion::ops::cuda::elementwise::{Filter, elementwise};
use accordion::ops::cuda::embedding::{Embedding, embedding};
use accordion::ops::cuda::gate::gate;
use accordion::ops::cuda::group_norm::{Film, Norm, Scratch, Table, affine_bytes, group_norm, sums_bytes};
use accordion::ops::cuda::layer_norm::{LayerNorm, layer_norm};
use accordion::ops::cuda::map::Affine;
use accordion::ops::cuda::sampler::{PITCH, Row, input_bytes, sampler, state_bytes};
use accordion::ops::cuda::tokens::{pack_positions, tokens, unpatch};
use accordion::ops::cuda::{Accelerator, Cost, Launch, Map, Precision, attention, launch, pitch, pixels};
use accordion::ops::{self, Tape};
use accordion::philox::{NoiseKey, philox4x32};
use bytemuck::NoUninit;
use candle_core::{Device, Tensor};
use compare::relative_error;
use emulated::Emulated;
use emulation::Order;
use lab::{Lab, Values};
use std::sync::Arc;

/// How far a result may lie from f64, as a share of the largest: a value's rounding, and that of sums in f32.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 3e-6,
        Precision::F16 => 7e-4,
        Precision::Bf16 => 5e-3,
    }
}

/// A case on some machine.
trait Case {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>);
}

/// In every precision, under every schedule, and where `ACCORDION_PTX` names a file, as nvcc compiled it.
fn emulate(case: impl Case) {
    for precision in Precision::ALL {
        for order in Order::ALL {
            case.run(&mut Lab::new(Emulated::new(1 << 28, order), precision));
        }
        if let Some(ptx) = emulated::ptx() {
            case.run(&mut Lab::new(Emulated::on_ptx(1 << 28, ptx), precision));
        }
    }
}

/// The same on the GPU that is there.
#[cfg(feature = "cuda")]
fn on_gpu(case: impl Case) {
    for precision in Precision::ALL {
        case.run(&mut Lab::new(accordion::ops::cuda::gpu::Gpu::open(0).unwrap(), precision));
    }
}

/// A test of the emulation, and the same as an ignored one of a GPU.
macro_rules! case {
    ($name:ident, $gpu:ident, $case:expr) => {
        #[test]
        fn $name() {
            $case.into_iter().for_each(emulate);
        }

        #[cfg(feature = "cuda")]
        #[test]
        #[ignore = "needs a GPU"]
        fn $gpu() {
            $case.into_iter().for_each(on_gpu);
        }
    };
}

#[track_caller]
fn assert_near(precision: Precision, got: &[f32], want: &[f64], what: &str) {
    let error = relative_error(got, want);
    assert!(error <= tolerance(precision), "{what}, {precision}: {error:.1e}");
}

fn silu(value: f64) -> f64 {
    value / (1.0 + (-value).exp())
}

fn gelu(value: f64) -> f64 {
    0.5 * value * (1.0 + libm::erf(value * std::f64::consts::FRAC_1_SQRT_2))
}

/// A prefix of a convolution's weights on one or two parts.
#[derive(Clone, Copy, Debug)]
struct Conv {
    /// Samples, rows and columns.
    size: [usize; 3],
    /// Channels of the parts; the second may be 0.
    parts: [usize; 2],
    places: Places,
    /// Inputs and outputs of the weights, which the case is a prefix of.
    whole: [usize; 2],
    outputs: usize,
    groups: usize,
    /// Bias by sample, residual with a scale, samples by address.
    with: [bool; 3],
    act: Option<Act>,
}

const CONV: Conv = Conv {
    size: [2, 5, 7],
    parts: [13, 0],
    places: Places::square(3, 1, 1),
    whole: [24, 20],
    outputs: 9,
    groups: 1,
    with: [false; 3],
    act: None,
};

const LINEAR: Places = Places::square(1, 1, 0);

impl Case for Conv {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>) {
        let Self { size: [samples, height, width], parts, places, whole: [inputs, whole], .. } = *self;
        let Places { kernel, pad, stride, .. } = places;
        let maps: Vec<_> = parts.iter().filter(|&&c| c > 0).map(|&c| lab.random([samples, height, width, c])).collect();
        let x = Values::beside(&maps.iter().map(|(_, values)| values).collect::<Vec<_>>());
        let kept: usize = parts.iter().sum();
        let raw = lab.normals(places.taps() * inputs * self.groups * whole);
        let groups = self.groups;
        let place =
            move |tap: usize, i: usize, group: usize, o: usize| ((tap * inputs + i) * groups + group) * whole + o;
        let weights = Weights { address: 0, kernel, inputs, outputs: whole, groups: self.groups };
        let packed = pack(lab.precision, &weights, |tap, i, group, o| raw[place(tap, i, group, o)]);
        assert_eq!(packed.len(), weights.bytes(lab.precision));
        let weights = Weights { address: lab.hold(&packed), ..weights };
        let rounded = lab.round(&raw);
        let bias = lab.normals(self.groups * whole);
        let bias_at = lab.floats(&pack_bias(&weights, |group, o| bias[group * whole + o]));
        let bias_pitch = pitch(self.outputs) + 8;
        let (sample_bias, sample_values) = lab.random([1, samples, 1, bias_pitch]);
        let [out_height, out_width] = places.on([height, width]);
        let group_pitch = pitch(self.outputs);
        let channels = if self.groups == 1 { self.outputs } else { self.groups * group_pitch };
        let shape = [samples, out_height, out_width, channels];
        let (residual, residual_values) = lab.random(shape);
        let y = lab.empty(shape);
        let [by_sample, with_residual, addressed] = self.with;
        let sample_bytes = maps[0].0.bytes(lab.precision) / samples;
        // The samples in reverse, where they are told by address.
        let addresses: Vec<u64> = (0..samples).rev().map(|b| maps[0].0.address + (b * sample_bytes) as u64).collect();
        let addresses = lab.hold(bytemuck::cast_slice(&addresses));
        let scale = if with_residual { 0.7 } else { 1.0 };
        let epilogue = Epilogue {
            bias: Some(bias_at),
            sample_bias: by_sample.then_some((sample_bias.address, bias_pitch)),
            residual: with_residual.then_some(&residual),
            scale,
            act: self.act,
        };
        let parts: Vec<&Map> = maps.iter().map(|(map, _)| map).collect();
        let launch =
            conv(lab.precision, &parts, addressed.then_some(addresses), &weights, places, self.outputs, epilogue, &y);
        lab.machine.launch(&launch).unwrap();
        let want = Values::from_fn(shape, |b, oy, ox, c| {
            let from = if addressed { samples - 1 - b } else { b };
            let (group, o) = (c / group_pitch, c % group_pitch);
            let (group, o) = if self.groups == 1 { (0, c) } else { (group, o) };
            if o >= self.outputs {
                return 0.0;
            }
            let mut sum = f64::from(bias[group * whole + o]);
            for tap in 0..places.taps() {
                let [ky, kx] = [tap / kernel[1], tap % kernel[1]].map(|at| at as isize);
                let [ky, kx] = [ky - pad[0] as isize, kx - pad[1] as isize];
                for i in 0..kept {
                    sum += x.at(from, oy * stride as isize + ky, ox * stride as isize + kx, i)
                        * rounded[place(tap, i, group, o)];
                }
            }
            if by_sample {
                sum += sample_values.at(0, b as isize, 0, o);
            }
            if with_residual {
                sum += residual_values.at(b, oy, ox, c);
            }
            let value = sum * f64::from(scale);
            match self.act {
                None => value,
                Some(Act::Silu) => silu(value),
                Some(Act::Gelu) => gelu(value),
                Some(Act::Relu) => unreachable!("no kernel has ReLU"),
            }
        });
        assert_near(lab.precision, &lab.get(&y), &want.data, &format!("{self:?}"));

        // The CPU's op, where the case is one that it knows.
        let is_plain = places == Places::square(kernel[0], 1, pad[0])
            && self.groups == 1
            && self.with == [false; 3]
            && self.act.is_none();
        if lab.precision == Precision::F32 && is_plain {
            let x32: Vec<f32> = x.data.iter().map(|&value| value as f32).collect();
            let x = Tensor::from_vec(x32, (samples, height, width, kept), &Device::Cpu).unwrap();
            let all = (0..places.taps()).flat_map(|tap| (0..inputs).map(move |i| (tap, i)));
            let w: Vec<f32> = all
                .flat_map(|(tap, i)| (0..whole).map(move |o| (tap, i, o)))
                .map(|(tap, i, o)| raw[place(tap, i, 0, o)])
                .collect();
            let w = Tensor::from_vec(w, (kernel[0], kernel[1], inputs, whole), &Device::Cpu).unwrap();
            let w = w.narrow(2, 0, kept).unwrap().narrow(3, 0, self.outputs).unwrap();
            let bias = Tensor::from_slice(&bias[..self.outputs], self.outputs, &Device::Cpu).unwrap();
            let y = ops::conv::conv2d(&Tape::off(), &x, &w, &bias, places).unwrap();
            assert_near(Precision::F32, &y.flatten_all().unwrap().to_vec1().unwrap(), &want.data, "the CPU's conv");
        }
    }
}

case!(
    a_convolution_takes_any_prefix_of_its_weights,
    gpu_convolution,
    [
        CONV,
        Conv { size: [1, 1, 1], parts: [1, 0], outputs: 1, ..CONV },
        Conv { size: [1, 9, 8], parts: [16, 5], whole: [21, 70], outputs: 67, with: [true, true, false], ..CONV },
        Conv { places: LINEAR, parts: [8, 13], outputs: 20, with: [false, true, false], ..CONV },
        Conv { parts: [3, 0], places: Places::square(3, 1, 2), size: [3, 4, 4], with: [false, false, true], ..CONV },
        Conv { places: LINEAR, parts: [11, 0], groups: 3, outputs: 5, whole: [12, 12], ..CONV },
        Conv {
            places: LINEAR,
            size: [1, 3, 1],
            parts: [70, 0],
            whole: [80, 130],
            outputs: 130,
            act: Some(Act::Silu),
            ..CONV
        },
        // Patches of an image that is told by address.
        Conv {
            places: Places::square(2, 2, 0),
            size: [2, 4, 6],
            parts: [3, 0],
            whole: [3, 20],
            with: [false, false, true],
            ..CONV
        },
        Conv {
            places: Places::square(4, 4, 0),
            size: [1, 8, 8],
            parts: [1, 0],
            whole: [1, 20],
            act: Some(Act::Gelu),
            ..CONV
        },
        // Down by 2: even and odd sides, several tiles of pixels.
        Conv { places: Places::square(3, 2, 1), size: [2, 17, 18], with: [true, true, false], ..CONV },
        Conv { places: Places::square(3, 3, 0), size: [1, 8, 7], act: Some(Act::Gelu), ..CONV },
        // With zeros below and right of the map alone; a gate and what it gates; more columns than rows.
        Conv { places: Places { after: 1, ..Places::square(3, 2, 0) }, size: [2, 6, 8], ..CONV },
        Conv { places: LINEAR, parts: [13, 0], groups: 2, outputs: 19, ..CONV },
        Conv { places: Places { after: -1, ..Places::new([1, 4], 1, [0, 2]) }, size: [1, 5, 6], ..CONV },
    ]
);

/// GroupNorm, applied with everything that the pass can do besides.
#[derive(Clone, Debug)]
struct Normed {
    size: [usize; 3],
    parts: [usize; 2],
    groups: Vec<u32>,
    /// Added to every value: a mean that is large against the spread.
    mean: f32,
    silu: bool,
    filter: Option<(Direction, &'static [f32])>,
    residual: bool,
    /// A scale and a shift by sample after the norm.
    film: bool,
}

impl Case for Normed {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>) {
        const EPS: f64 = 1e-6;
        let [samples, height, width] = self.size;
        let mut maps = Vec::new();
        for &channels in self.parts.iter().filter(|&&channels| channels > 0) {
            let shape = [samples, height, width, channels];
            let values: Vec<f32> = lab.normals(shape.iter().product()).iter().map(|value| value + self.mean).collect();
            maps.push(lab.put(shape, &values));
        }
        let x = Values::beside(&maps.iter().map(|(_, values)| values).collect::<Vec<_>>());
        let channels: usize = self.parts.iter().sum();
        let (scale, shift) = (lab.normals(channels), lab.normals(channels));
        let table = GroupTable::new(self.groups.clone());
        let (words, placed) = Table::new(&table, 0);
        let placed = Table { address: lab.hold(bytemuck::cast_slice(&words)), ..placed };
        let norm = Norm { scale: lab.floats(&scale), shift: lab.floats(&shift), table: placed };
        let parts: Vec<&Map> = maps.iter().map(|(map, _)| map).collect();
        let scratch =
            Scratch { sums: lab.poison(sums_bytes(lab.precision, &parts)), counters: lab.hold(&vec![0; 4 * samples]) };
        let affine = Affine { address: lab.poison(affine_bytes(lab.precision, &parts)) };
        let film_pitch = 2 * pitch(channels);
        let (films, film_values) = lab.random([1, samples, 1, film_pitch]);
        let film_shift = pitch(channels);
        let film = self.film.then(|| Film {
            scale: films.address,
            shift: films.address + (film_shift * lab.precision.bytes()) as u64,
            pitch: film_pitch,
        });
        // Twice: the counters must be as they were.
        for _ in 0..2 {
            let launch = group_norm(lab.precision, &parts, &norm, EPS as f32, film, scratch, affine);
            lab.machine.launch(&launch).unwrap();
        }
        let filter = self.filter.map(|(direction, taps)| Filter { direction, taps, pad: (taps.len() - 1) / 2 });
        let side = |n| filter.map_or(n, |filter| filter.size(n));
        let shape = [samples, side(height), side(width), channels];
        let (residual, residual_values) = lab.random(shape);
        let y = lab.empty(shape);
        let residual = self.residual.then_some(&residual);
        let factor = if self.residual { 0.6 } else { 1.0 };
        let launch = elementwise(lab.precision, &parts, Some(affine), self.silu, filter, residual, factor, &y);
        lab.machine.launch(&launch).unwrap();

        let mut normed = x.clone();
        for b in 0..samples {
            for group in 0..table.groups() as u32 {
                let members: Vec<usize> = (0..channels).filter(|&c| self.groups[c] == group).collect();
                let places = || {
                    (0..height * width)
                        .flat_map(|p| members.iter().map(move |c| (b * height * width + p) * channels + c))
                };
                let count = places().count() as f64;
                let mean = places().map(|at| x.data[at]).sum::<f64>() / count;
                let variance = places().map(|at| (x.data[at] - mean).powi(2)).sum::<f64>() / count;
                for at in places() {
                    let c = at % channels;
                    let value = (x.data[at] - mean) / (variance + EPS).sqrt();
                    let mut value = value * f64::from(scale[c]) + f64::from(shift[c]);
                    if self.film {
                        let of = |column| film_values.at(0, b as isize, 0, column);
                        value = value * (1.0 + of(c)) + of(film_shift + c);
                    }
                    normed.data[at] = if self.silu { silu(value) } else { value };
                }
            }
        }
        let want = Values::from_fn(shape, |b, oy, ox, c| {
            let value = match filter {
                None => normed.at(b, oy, ox, c),
                Some(filter) => filtered(&normed, &filter, [b, oy as usize, ox as usize, c]),
            };
            let more = if self.residual { residual_values.at(b, oy, ox, c) } else { 0.0 };
            (value + more) * f64::from(factor)
        });
        // A mean of a thousand leaves f32 ten bits fewer.
        let got = lab.get(&y);
        let error = relative_error(&got, &want.data);
        let allowed = tolerance(lab.precision) + f64::from(self.mean) * 1.2e-7;
        assert!(error <= allowed, "{self:?}, {}: {error:.1e}", lab.precision);

        if lab.precision == Precision::F32 && self.filter.is_none() && !self.residual && !self.film {
            let x32: Vec<f32> = x.data.iter().map(|&value| value as f32).collect();
            let x = Tensor::from_vec(x32, (samples, height, width, channels), &Device::Cpu).unwrap();
            let [scale, shift] = [scale, shift].map(|values| Tensor::from_vec(values, channels, &Device::Cpu).unwrap());
            let y =
                ops::group_norm::group_norm(&Tape::off(), &x, &scale, &shift, &Arc::new(table), EPS as f32, self.silu);
            let error = relative_error(&y.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), &want.data);
            assert!(error <= allowed, "the CPU's norm: {error:.1e}");
        }
    }
}

/// One value of a map through a filter, by the definition of `ops::cpu::resample`.
fn filtered(x: &Values, filter: &Filter, [b, oy, ox, c]: [usize; 4]) -> f64 {
    let sum: f64 = filter.taps.iter().map(|&tap| f64::from(tap)).sum();
    let gain = f64::from(filter.direction.gain());
    let mut value = 0.0;
    for (i, &fi) in filter.taps.iter().enumerate() {
        for (j, &fj) in filter.taps.iter().enumerate() {
            let weight = gain * f64::from(fi) * f64::from(fj) / (sum * sum);
            let source = |o: usize, k: usize| match filter.direction {
                Direction::Down => Some((2 * o + k) as isize - filter.pad as isize),
                Direction::Up => {
                    let twice = (o + filter.pad) as isize - k as isize;
                    (twice % 2 == 0).then_some(twice / 2)
                }
            };
            if let (Some(y), Some(x_at)) = (source(oy, i), source(ox, j)) {
                value += weight * x.at(b, y, x_at, c);
            }
        }
    }
    value
}

fn normed() -> Vec<Normed> {
    let plain = Normed {
        size: [2, 7, 7],
        parts: [12, 0],
        groups: (0..12).map(|c| c % 3).collect(),
        mean: 0.0,
        silu: true,
        filter: None,
        residual: false,
        film: false,
    };
    vec![
        plain.clone(),
        // Groups of unequal sizes that interleave; two parts; more pixels than one block sums up.
        Normed {
            size: [2, 13, 5],
            parts: [8, 13],
            groups: (0..21).map(|c| if c < 2 { 0 } else { 1 + c % 4 }).collect(),
            silu: false,
            ..plain.clone()
        },
        Normed { mean: 1000.0, size: [1, 12, 11], ..plain.clone() },
        Normed { size: [3, 1, 1], parts: [5, 0], groups: vec![0; 5], silu: false, ..plain.clone() },
        Normed { size: [1, 2, 2], parts: [520, 0], groups: (0..520).map(|c| c / 65).collect(), ..plain.clone() },
        Normed { filter: Some((Direction::Down, &[1.0, 1.0])), size: [2, 6, 6], ..plain.clone() },
        Normed { filter: Some((Direction::Up, &[1.0, 1.0])), size: [1, 3, 5], ..plain.clone() },
        Normed {
            filter: Some((Direction::Down, &[1.0, 3.0, 3.0, 1.0])),
            size: [1, 6, 8],
            residual: true,
            ..plain.clone()
        },
        Normed { film: true, ..plain.clone() },
        Normed {
            film: true,
            size: [3, 9, 9],
            parts: [16, 5],
            groups: (0..21).map(|c| c / 7).collect(),
            ..plain.clone()
        },
        Normed { filter: Some((Direction::Up, &[1.0, 3.0, 3.0, 1.0])), size: [1, 5, 3], ..plain },
    ]
}

case!(a_norm_follows_its_table_and_the_pass_does_the_rest, gpu_norm, normed());

/// Attention of so many samples and queries, to as many keys as there are queries or to so many others, in heads of so many offsets.
#[derive(Clone, Copy, Debug)]
struct Attend {
    size: [usize; 2],
    others: Option<usize>,
    heads: usize,
    dim: usize,
}

impl Case for Attend {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>) {
        let Self { size: [samples, queries], others, heads, dim } = *self;
        let (keys, step) = (others.unwrap_or(queries), pitch(dim));
        // So many parts side by side of each pixel.
        let mut random = |pixels: usize, parts: usize| {
            let raw = lab.normals(samples * pixels * parts * heads * step);
            let in_place = |(at, value): (usize, &f32)| if at % step < dim { 1.5 * value } else { 0.0 };
            let values: Vec<f32> = raw.iter().enumerate().map(in_place).collect();
            let (map, rounded) = lab.put([samples, pixels, 1, parts * heads * step], &values);
            (map, rounded, values)
        };
        let (own, x, values) = random(queries, if others.is_some() { 1 } else { 3 });
        let other = others.map(|keys| random(keys, 2));
        let (kv, of_kv) = other.as_ref().map_or((&own, &x), |(map, rounded, _)| (map, rounded));
        let channels = attention::channels(heads, dim);
        let y = lab.empty([samples, queries, 1, channels]);
        lab.machine.launch(&attention::attention(lab.precision, [&own, kv], heads, dim, &y)).unwrap();
        let mut want = vec![0.0; samples * queries * channels];
        for (b, head) in (0..samples).flat_map(|b| (0..heads).map(move |head| (b, head))) {
            let q = |at: usize, c: usize| x.at(b, at as isize, 0, head * step + c);
            let of = |at: usize, from_last: usize, c: usize| {
                of_kv.at(b, at as isize, 0, kv.channels - (from_last * heads - head) * step + c)
            };
            for query in 0..queries {
                let score = |k| (0..dim).map(|c| q(query, c) * of(k, 2, c)).sum::<f64>() / (dim as f64).sqrt();
                let scores: Vec<f64> = (0..keys).map(score).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                let total: f64 = weights.iter().sum();
                for c in 0..dim {
                    let mixed = (0..keys).map(|k| weights[k] * of(k, 1, c)).sum::<f64>() / total;
                    want[(b * queries + query) * channels + attention::channel(heads, head, c)] = mixed;
                }
            }
        }
        // The weights of the values are rounded as well.
        let got = lab.get(&y);
        let error = relative_error(&got, &want);
        assert!(error <= 2.0 * tolerance(lab.precision), "{self:?}, {}: {error:.1e}", lab.precision);
        if lab.precision == Precision::F32 && step == dim && heads == 1 && others.is_none() {
            let qkv = Tensor::from_vec(values, (samples, queries, 1, 3 * dim), &Device::Cpu).unwrap();
            let y = ops::attention::attention(&Tape::off(), &qkv, 1).unwrap();
            assert_near(Precision::F32, &y.flatten_all().unwrap().to_vec1().unwrap(), &want, "the CPU's attention");
        }
    }
}

/// Among themselves.
const SELF: Attend = Attend { size: [1, 1], others: None, heads: 1, dim: 1 };

case!(
    attention_mixes_the_values_of_all_keys,
    gpu_attention,
    [
        Attend { size: [2, 35], dim: 5, ..SELF },
        SELF,
        Attend { size: [1, 81], dim: 40, ..SELF },
        Attend { size: [1, 32], dim: 136, ..SELF },
        Attend { size: [2, 36], heads: 3, dim: 13, ..SELF },
        Attend { size: [1, 67], heads: 2, dim: 64, ..SELF },
        Attend { size: [1, 3], heads: 2, dim: 131, ..SELF },
        Attend { size: [1, 2], heads: 5, dim: 1, ..SELF },
        // To a text, and to less than a tile of keys.
        Attend { size: [2, 70], others: Some(77), heads: 2, dim: 12 },
        Attend { size: [1, 5], others: Some(1), heads: 1, dim: 40 },
        Attend { size: [3, 64], others: Some(33), heads: 3, dim: 5 },
    ]
);

/// A gate of so many samples and pixels, of so many channels.
struct Gated([usize; 3]);

impl Case for Gated {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>) {
        let [samples, pixels, channels] = self.0;
        let step = pitch(channels);
        let raw = lab.normals(samples * pixels * 2 * step);
        let in_place = |(at, value): (usize, &f32)| if at % step < channels { 2.0 * value } else { 0.0 };
        let values: Vec<f32> = raw.iter().enumerate().map(in_place).collect();
        let (x, values) = lab.put([samples, pixels, 1, 2 * step], &values);
        let y = lab.empty([samples, pixels, 1, channels]);
        lab.machine.launch(&gate(lab.precision, &x, &y)).unwrap();
        let want = Values::from_fn([samples, pixels, 1, channels], |b, at, _, c| {
            values.at(b, at, 0, c) * gelu(values.at(b, at, 0, step + c))
        });
        assert_near(lab.precision, &lab.get(&y), &want.data, "gate");
    }
}

case!(
    a_gate_is_the_gelu_of_the_second_half,
    gpu_gate,
    [Gated([2, 5, 13]), Gated([1, 9, 1]), Gated([3, 77, 40]), Gated([1, 300, 8])]
);

/// The embedding, with classes or without, with the level or without.
struct Embed {
    classes: usize,
    level: bool,
    cosines_first: bool,
}

impl Case for Embed {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>) {
        let (half, samples) = (5, 4);
        let noise = [-1.2f32, 0.0, 3.7, 999.0];
        let frequencies = lab.normals(half);
        let labels = lab.normals((self.classes + 1) * 2 * half);
        let class = [0u32, 2, 1, self.classes as u32].map(|class| class.min(self.classes as u32));
        let from = Embedding {
            noise: lab.floats(&noise),
            classes: lab.hold(bytemuck::cast_slice(&class)),
            frequencies: self.level.then(|| lab.floats(&frequencies)),
            cosines_first: self.cosines_first,
            labels: (self.classes > 0).then(|| lab.floats(&labels)),
        };
        let y = lab.empty([1, samples, 1, 2 * half]);
        lab.machine.launch(&embedding(lab.precision, &from, &y)).unwrap();
        let want = Values::from_fn([1, samples, 1, 2 * half], |_, b, _, c| {
            // The product is an f32's in the definition of the network.
            let angle = f64::from(noise[b as usize] * frequencies[c % half]);
            let value = if (c < half) == self.cosines_first { angle.cos() } else { angle.sin() };
            let value = if self.level { value } else { 0.0 };
            let label = labels[class[b as usize] as usize * 2 * half + c];
            value + if self.classes > 0 { f64::from(label) } else { 0.0 }
        });
        assert_near(lab.precision, &lab.get(&y), &want.data, "embedding");
    }
}

case!(
    the_embedding_is_of_level_and_class,
    gpu_embedding,
    [
        Embed { classes: 0, level: true, cosines_first: false },
        Embed { classes: 3, level: true, cosines_first: false },
        Embed { classes: 3, level: true, cosines_first: true },
        Embed { classes: 2, level: false, cosines_first: true },
    ]
);

/// LayerNorm of so many samples, rows and columns, and channels.
struct LayerNormed {
    shape: [usize; 4],
    /// Added to every value: a mean that is large against the spread.
    mean: f32,
}

impl Case for LayerNormed {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>) {
        const EPS: f64 = 1e-5;
        let channels = self.shape[3];
        let values: Vec<f32> = lab.normals(self.shape.iter().product()).iter().map(|value| value + self.mean).collect();
        let (x, values) = lab.put(self.shape, &values);
        let [scale, shift] = [0, 1].map(|_| {
            let mut values = lab.normals(channels);
            values.resize(pitch(channels), 0.0);
            values
        });
        let norm = LayerNorm { scale: lab.floats(&scale), shift: lab.floats(&shift), eps: EPS as f32 };
        let y = lab.empty(self.shape);
        lab.machine.launch(&layer_norm(lab.precision, &x, &norm, &y)).unwrap();
        let normed = |pixel: &[f64]| -> Vec<f64> {
            let mean = pixel.iter().sum::<f64>() / channels as f64;
            let variance = pixel.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / channels as f64;
            let normed = |(value, c): (&f64, usize)| {
                (value - mean) / (variance + EPS).sqrt() * f64::from(scale[c]) + f64::from(shift[c])
            };
            pixel.iter().zip(0..).map(normed).collect()
        };
        let want: Vec<f64> = values.data.chunks_exact(channels).flat_map(normed).collect();
        let error = relative_error(&lab.get(&y), &want);
        // A mean of a hundred leaves f32 seven bits fewer.
        let allowed = tolerance(lab.precision) + f64::from(self.mean) * 1.2e-7;
        assert!(error <= allowed, "{:?}, {}: {error:.1e}", self.shape, lab.precision);
    }
}

case!(
    a_layer_norm_is_of_each_pixel_alone,
    gpu_layer_norm,
    [([2, 3, 3], 13, 0.0), ([1, 1, 1], 1, 0.0), ([3, 5, 1], 520, 0.0), ([1, 7, 1], 24, 100.0)].map(
        |([samples, height, width], channels, mean)| LayerNormed { shape: [samples, height, width, channels], mean }
    )
);

/// Tokens of so many vectors and a map.
struct Tokens {
    fronts: usize,
    shape: [usize; 4],
}

impl Case for Tokens {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>) {
        let [samples, height, width, channels] = self.shape;
        let fronts: Vec<_> = (0..self.fronts).map(|_| lab.random([1, samples, 1, channels])).collect();
        let (x, values) = lab.random(self.shape);
        let count = self.fronts + height * width;
        let positions = lab.normals(count * channels);
        let at = lab.floats(&pack_positions(channels, &positions));
        let y = lab.empty([samples, count, 1, channels]);
        let maps: Vec<&Map> = fronts.iter().map(|(map, _)| map).collect();
        lab.machine.launch(&tokens(lab.precision, &maps, &x, at, &y)).unwrap();
        let want = Values::from_fn([samples, count, 1, channels], |b, token, _, c| {
            let token = token as usize;
            let value = match token.checked_sub(self.fronts) {
                None => fronts[token].1.at(0, b as isize, 0, c),
                Some(pixel) => values.at(b, (pixel / width) as isize, (pixel % width) as isize, c),
            };
            value + f64::from(positions[token * channels + c])
        });
        assert_near(lab.precision, &lab.get(&y), &want.data, "tokens");
    }
}

case!(
    tokens_are_vectors_then_pixels_at_their_positions,
    gpu_tokens,
    [
        Tokens { fronts: 0, shape: [2, 3, 2, 5] },
        Tokens { fronts: 1, shape: [3, 4, 4, 40] },
        Tokens { fronts: 2, shape: [2, 1, 3, 24] },
    ]
);

/// An image of so many samples, rows and columns of patches of a side, and channels.
struct Patches {
    fronts: usize,
    size: [usize; 3],
    patch: usize,
    channels: usize,
}

impl Case for Patches {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>) {
        let &Self { fronts, size: [samples, rows, columns], patch, channels } = self;
        let (x, values) = lab.random([samples, fronts + rows * columns, 1, patch * patch * channels]);
        let shape = [samples, rows * patch, columns * patch, channels];
        let y = lab.empty(shape);
        lab.machine.launch(&unpatch(lab.precision, &x, fronts, patch, &y)).unwrap();
        let want = Values::from_fn(shape, |b, oy, ox, c| {
            let [oy, ox] = [oy, ox].map(|at| at as usize);
            let token = fronts + oy / patch * columns + ox / patch;
            values.at(b, token as isize, 0, (oy % patch * patch + ox % patch) * channels + c)
        });
        let got: Vec<f64> = lab.get(&y).into_iter().map(f64::from).collect();
        assert_eq!(got, want.data, "values are moved, not changed");
    }
}

case!(
    an_image_is_put_together_from_its_patches,
    gpu_unpatch,
    [
        Patches { fronts: 1, size: [2, 3, 2], patch: 2, channels: 3 },
        Patches { fronts: 2, size: [1, 2, 5], patch: 4, channels: 1 },
        Patches { fronts: 0, size: [3, 2, 2], patch: 1, channels: 13 },
        Patches { fronts: 1, size: [1, 9, 9], patch: 2, channels: 4 },
    ]
);

/// A sampler step on rows of every kind.
#[derive(Clone, Copy, Debug)]
struct Step {
    image: ImageShape,
    /// Channels that a network for inpainting is given beside the image.
    beside: usize,
}

impl Case for Step {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>) {
        let Self { image, beside } = *self;
        let (pixels, elements) = (image.height * image.width, image.elements());
        let state = state_bytes(image) / 4;
        let more = lab.normals(pixels * beside);
        // Rows: all terms at once, guidance and noise; no class of its own; skipped; a fault; the start of an image.
        let (output, f) = lab.random([5, image.height, image.width, PITCH]);
        let mut broken = vec![0.0; pixels * PITCH];
        broken[0] = f32::NAN;
        let (broken, _) = lab.put([1, image.height, image.width, PITCH], &broken);
        let mut bytes = vec![0; broken.bytes(lab.precision)];
        lab.machine.download(broken.address, &mut bytes).unwrap();
        lab.machine.upload(output.address + 4 * bytes.len() as u64, &bytes).unwrap();
        let key = NoiseKey { seed: 0x0123_4567_89ab_cdef, image: 3 };
        let full = Row {
            seed: key.seed,
            image: key.image,
            draw: 7,
            conditional: 2,
            unconditional: 1,
            guidance: 2.5,
            c_skip: 0.3,
            c_out: -1.1,
            a_x: 0.8,
            a_d: 0.4,
            a_m: [-0.3, 0.7, -0.25],
            noise: 0.9,
            b_x: 0.2,
            b_d: 1.3,
            b_m: 0.5,
            c_in: 0.6,
            ..Row::default()
        };
        let plain = Row { conditional: 3, unconditional: 3, noise: 0.0, a_m: [0.0, 0.0, 0.4], b_m: 0.0, ..full };
        let fault = Row { conditional: 4, unconditional: 4, ..full };
        let mut rows = [full, plain, Row::default(), fault];
        let mut states = Vec::new();
        for row in &mut rows {
            let [x, m, m1, m2] = [0, 1, 2, 3].map(|_| lab.normals(state));
            let memory = [m, m1, m2];
            row.x = lab.floats(&x);
            row.memory = memory.each_ref().map(|memory| lab.floats(memory));
            // The oldest gives its place.
            row.newest = row.memory[2];
            row.estimate = lab.poison(state * 4);
            row.input = lab.poison(input_bytes(lab.precision, image, beside));
            row.beside = if beside == 0 { 0 } else { lab.floats(&more) };
            states.push((x, memory));
        }
        rows[1].estimate = 0;
        // What is known is put back, with the first noise.
        let (known, mask) = (lab.normals(state), (0..state).map(|pixel| pixel as u32 % 3).collect::<Vec<_>>());
        // The first is led away from what another call has made.
        let led = lab.normals(state);
        rows[0].led = lab.floats(&led);
        (rows[1].known, rows[1].mask, rows[1].level) = (lab.floats(&known), lab.hold(bytemuck::cast_slice(&mask)), 1.7);
        rows[2].x = 0;
        let at = lab.hold(bytemuck::cast_slice(&rows));
        let faults = lab.hold(&[0; 16]);
        lab.machine.launch(&sampler(lab.precision, image, beside, at, 4, Some(output.address), faults)).unwrap();
        let mut flags = [0; 16];
        lab.machine.download(faults, &mut flags).unwrap();
        assert_eq!(bytemuck::cast_slice::<u8, u32>(&flags), [0, 0, 0, 1], "faults");

        for (row, (x, memory)) in rows.iter().zip(&states).take(2) {
            let noise = key.draw(row.draw);
            let wide = |value: f32| f64::from(value);
            let (mut image_then, mut memory_then, mut estimate, mut input) = (vec![], vec![], vec![], vec![]);
            for e in 0..elements {
                let (pixel, channel) = (e / image.channels, e % image.channels);
                let of = |sample: u32| f.data[(sample as usize * pixels + pixel) * PITCH + channel];
                let guided = of(row.unconditional) + wide(row.guidance) * (of(row.conditional) - of(row.unconditional));
                let mut d = wide(row.c_skip) * wide(x[e]) + wide(row.c_out) * guided;
                if row.led != 0 {
                    d = wide(led[e]) + wide(row.guidance) * (d - wide(led[e]));
                }
                let remembered = memory.iter().zip(row.a_m).map(|(memory, weight)| wide(weight) * wide(memory[e]));
                let then = wide(row.a_x) * wide(x[e]) + wide(row.a_d) * d + remembered.sum::<f64>();
                let mut then = then + wide(row.noise) * noise.normal(e as u64);
                if row.known != 0 && mask[pixel] == 0 {
                    then = wide(known[e]) + wide(row.level) * key.draw(NoiseKey::INITIAL).normal(e as u64);
                }
                image_then.push(then);
                memory_then.push(wide(row.b_x) * wide(x[e]) + wide(row.b_d) * d + wide(row.b_m) * wide(memory[0][e]));
                estimate.push(d);
                input.push(wide(row.c_in) * then);
                if channel + 1 == image.channels {
                    input.extend(more[pixel * beside..][..beside].iter().map(|&value| wide(value)));
                }
            }
            // The state is f32 whatever the precision is.
            assert_near(Precision::F32, &lab.read(row.x, elements), &image_then, "image");
            assert_near(Precision::F32, &lab.read(row.newest, elements), &memory_then, "memory");
            assert_eq!(lab.read(row.memory[1], state), memory[1], "what is remembered stays");
            if row.estimate != 0 {
                assert_near(Precision::F32, &lab.read(row.estimate, elements), &estimate, "estimate");
            }
            let map = Map {
                address: row.input,
                samples: 1,
                height: image.height,
                width: image.width,
                channels: image.channels + beside,
            };
            assert_near(lab.precision, &lab.get(&map), &input, "next input");
        }
        assert_eq!(lab.read(rows[2].newest, state), states[2].1[2], "a skipped row is left alone");

        // The start: noise alone, whatever was there before.
        let (x, memory) = (lab.poison(state * 4), lab.poison(state * 4));
        let memory = [memory, rows[0].memory[0], rows[0].memory[1]];
        let place = Row {
            x,
            memory,
            newest: memory[0],
            beside: rows[0].beside,
            seed: key.seed,
            image: key.image,
            ..Row::default()
        };
        let start = Row { noise: 80.0, c_in: 0.6, ..place };
        let at = lab.hold(bytemuck::bytes_of(&start));
        lab.machine.launch(&sampler(lab.precision, image, beside, at, 1, None, faults)).unwrap();
        let want: Vec<f64> = (0..elements as u64).map(|e| 80.0 * f64::from(key.draw(0).normal(e) as f32)).collect();
        assert_near(Precision::F32, &lab.read(start.x, elements), &want, "first noise");
        assert!(lab.read(start.newest, elements).iter().all(|&value| value == 0.0), "memory of an image that begins");
    }
}

case!(
    a_sampler_step_is_what_its_rows_say,
    gpu_sampler,
    [
        Step { image: ImageShape { height: 5, width: 7, channels: 1 }, beside: 0 },
        Step { image: ImageShape { height: 3, width: 3, channels: 3 }, beside: 0 },
        Step { image: ImageShape { height: 24, width: 24, channels: 3 }, beside: 0 },
        Step { image: ImageShape { height: 2, width: 3, channels: 4 }, beside: 0 },
        Step { image: ImageShape { height: 3, width: 3, channels: 4 }, beside: 5 },
        Step { image: ImageShape { height: 5, width: 3, channels: 3 }, beside: 4 },
    ]
);

/// Bytes of values, those outside of the range among them.
struct Bytes;

impl Case for Bytes {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>) {
        let image = ImageShape { height: 13, width: 11, channels: 3 };
        let mut values = lab.normals(state_bytes(image) / 4);
        values[..6].copy_from_slice(&[-1.0, 1.0, 0.0, -7.0, 1e9, 0.5 / 127.5]);
        let x = lab.floats(&values);
        let y = lab.poison(pixels::bytes(image));
        lab.machine.launch(&pixels::pixels(image, x, y)).unwrap();
        let mut bytes = vec![0; image.elements()];
        lab.machine.download(y, &mut bytes).unwrap();
        let byte = |&value: &f32| (f64::from(value) * 127.5 + 127.5).round().clamp(0.0, 255.0) as u8;
        assert_eq!(bytes, values[..image.elements()].iter().map(byte).collect::<Vec<_>>());
        assert_eq!(bytes[..5], [0, 255, 128, 0, 255]);
    }
}

case!(pixels_are_rounded_and_clamped, gpu_pixels, [Bytes]);

/// As `kernels/noise.cuh` has it.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct NormalsArgs {
    out: u64,
    seed: u64,
    count: u64,
    image: u32,
    draw: u32,
}

/// The first elements of one draw of an image's noise.
struct Normals {
    count: usize,
    image: u32,
    draw: u32,
}

const SEED: u64 = 0x0123_4567_89ab_cdef;

impl Case for Normals {
    fn run<M: Accelerator>(&self, lab: &mut Lab<M>) {
        let &Self { count, image, draw } = self;
        let out = lab.poison((count + 4) * 4);
        let args = NormalsArgs { out, seed: SEED, count: count as u64, image, draw };
        let launch = Launch::new("normals", None, [count.div_ceil(4 * 128), 1, 1], &args, Cost::default(), 0);
        lab.machine.launch(&launch).unwrap();
        let (mut expected, got) = (vec![0.0; count], lab.read(out, count + 4));
        NoiseKey { seed: SEED, image }.draw(draw).fill_normals(&mut expected);
        for (got, expected) in got.iter().zip(&expected) {
            assert!(got.to_bits().abs_diff(expected.to_bits()) <= 2, "{got} instead of {expected}");
        }
        assert!(got[count..].iter().all(|value| value.is_nan()), "elements behind the last were written");
    }
}

case!(
    normals_are_the_cpu_s_to_the_last_bits,
    gpu_normals,
    [(1, 0, 0), (511, 3, 0), (4098, 7, 25)].map(|(count, image, draw)| Normals { count, image, draw })
);

/// As `emulation/cpp/probes.cu` has it.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct ProbeArgs {
    key: u64,
    nothing: u64,
    out: u64,
    words: [u32; 2],
}

#[test]
fn the_integers_behind_the_noise_are_the_cpu_s() {
    let mut lab = Lab::new(Emulated::new(1 << 20, Order::ALL[0]), Precision::F32);
    let (key, out) = (lab.hold(&SEED.to_le_bytes()), lab.poison(64 * 16));
    let args = ProbeArgs { key, nothing: 0, out, words: [7, u32::MAX] };
    lab.machine.launch(&Launch::new("probe_philox", None, [2, 1, 1], &args, Cost::default(), 0)).unwrap();
    let words: Vec<u32> = lab.read(out, 64 * 4).iter().map(|word| word.to_bits()).collect();
    for (block, words) in words.chunks_exact(4).enumerate() {
        assert_eq!(words, philox4x32([block as u32, 7, u32::MAX, 3], [SEED as u32, (SEED >> 32) as u32]));
    }
}

#[test]
fn the_table_of_threads_is_that_of_the_kernels() {
    let mut known: Vec<String> = Vec::new();
    for kernel in emulation::kernels().into_iter().filter(|kernel| !kernel.name.starts_with("probe_")) {
        let of_element = Precision::ALL.iter().find_map(|precision| kernel.name.strip_suffix(&format!("_{precision}")));
        let stem = of_element.unwrap_or(&kernel.name);
        let (_, threads) =
            launch::THREADS.into_iter().find(|(known, _)| *known == stem).expect("every kernel is listed");
        assert_eq!(threads, kernel.threads, "{}", kernel.name);
        known.push(stem.to_owned());
    }
    assert!(
        launch::THREADS.iter().all(|(stem, _)| known.iter().any(|known| known == stem)),
        "no kernel is listed in vain"
    );
}

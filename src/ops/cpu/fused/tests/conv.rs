use super::super::conv::Conv;
use super::super::epilogue::Epilogue;
use super::super::method::{Filtering, Method};
use super::super::panels::pitch;
use super::super::{Map, Source, Workspace};
use super::{Rig, SAMPLES, Slopes, activated, dense, joined, map, sample_values, side_by_side};
use crate::ops::cpu::conv::Places;
use crate::ops::cpu::testing::values;

/// A convolution and what it is asked.
#[derive(Clone, Debug)]
struct Case {
    method: Method,
    places: Places,
    size: [usize; 2],
    /// Inputs and outputs of the weights.
    packed: [usize; 2],
    /// Channels of the maps that are read.
    parts: Vec<usize>,
    outputs: usize,
    /// Whether the source has slopes, and then whether SiLU follows.
    silu: Option<bool>,
    bias: Bias,
    residual: bool,
    scale: f32,
    relu: bool,
}

#[derive(Clone, Copy, Debug)]
enum Bias {
    None,
    Shared,
    BySample,
}

/// Sums of up to 2700 products in f32, whose rounding errors add up like a random walk: 2e-6 of the largest value.
const DIRECT: f64 = 5e-6;
/// F(2x2) transforms by additions: 1e-6.
const F2: f64 = 3e-6;
/// Those of more points multiply by up to 8 what then cancels: 1e-5.
const MORE: f64 = 3e-5;

impl Case {
    fn new(method: Method, places: Places, size: [usize; 2], [c_in, c_out]: [usize; 2]) -> Self {
        Self {
            method,
            places,
            size,
            packed: [c_in, c_out],
            parts: vec![c_in],
            outputs: c_out,
            silu: None,
            bias: Bias::None,
            residual: false,
            scale: 1.0,
            relu: false,
        }
    }

    fn out(&self) -> [usize; 2] {
        let Places { kernel, stride, pad, after } = self.places;
        let side = |axis: usize| (self.size[axis] + 2 * pad[axis]).strict_add_signed(after);
        [0, 1].map(|axis| (side(axis) - kernel[axis]) / stride + 1)
    }

    fn weights(&self) -> Vec<f32> {
        values(1, self.places.taps() * self.packed[0] * self.packed[1])
    }

    fn part(&self, index: usize, sample: usize) -> Vec<f32> {
        sample_values(2 + index as u64, sample, self.size[0] * self.size[1] * self.parts[index])
    }

    fn residual(&self, sample: usize) -> Vec<f32> {
        let [height, width] = self.out();
        sample_values(8, sample, height * width * self.outputs)
    }

    /// The bias of a sample, with nonsense after the outputs.
    fn bias(&self, sample: usize) -> Vec<f32> {
        let sample = if matches!(self.bias, Bias::BySample) { sample } else { 0 };
        let mut bias = sample_values(9, sample, self.outputs);
        bias.resize(pitch(self.outputs), f32::NAN);
        bias
    }

    fn run(&self, conv: &Conv, workspace: &mut Workspace, samples: &[usize]) -> Vec<f32> {
        let [height, width] = self.size;
        let parts = self.parts.iter().enumerate().map(|(index, &channels)| {
            map(workspace, [height, width, channels], &joined(samples, |sample| self.part(index, sample)))
        });
        let parts: Vec<Map> = parts.collect();
        let slopes = Slopes::new(samples, self.parts.iter().sum());
        let [height, width] = self.out();
        let residual = self
            .residual
            .then(|| map(workspace, [height, width, self.outputs], &joined(samples, |sample| self.residual(sample))));
        let biases = joined(samples, |sample| self.bias(sample));
        let bias = match self.bias {
            Bias::None => None,
            Bias::Shared => Some((&biases[..pitch(self.outputs)], 0)),
            Bias::BySample => Some((&biases[..], pitch(self.outputs))),
        };
        let mut y = workspace.arena.map([samples.len(), height, width, self.outputs]);
        let views: Vec<&Map> = parts.iter().collect();
        let source = Source { parts: &views, affine: self.silu.map(|silu| slopes.affine(silu)) };
        let epilogue = Epilogue { bias, residual: residual.as_ref(), scale: self.scale, relu: self.relu };
        conv.run(workspace, source, &epilogue, &mut y);
        parts.into_iter().chain(residual).for_each(|map| workspace.arena.put(map));
        dense(workspace, y)
    }

    fn reference(&self, sample: usize) -> Vec<f64> {
        let ([height, width], [out_height, out_width]) = (self.size, self.out());
        let c_in: usize = self.parts.iter().sum();
        let parts: Vec<_> = (0..self.parts.len()).map(|index| (self.parts[index], self.part(index, sample))).collect();
        let x = activated(sample, c_in, self.silu, side_by_side(&parts));
        let weights = self.weights();
        let (bias, residual) = (self.bias(sample), self.residual(sample));
        let mut y = vec![0.0; out_height * out_width * self.outputs];
        for (place, y) in y.iter_mut().enumerate() {
            let (pixel, o) = (place / self.outputs, place % self.outputs);
            let Places { kernel: [_, wide], stride, pad, .. } = self.places;
            for tap in 0..self.places.taps() {
                let row = (pixel / out_width * stride + tap / wide).wrapping_sub(pad[0]);
                let column = (pixel % out_width * stride + tap % wide).wrapping_sub(pad[1]);
                if row < height && column < width {
                    let x = &x[(row * width + column) * c_in..][..c_in];
                    let w = |i: usize| f64::from(weights[(tap * self.packed[0] + i) * self.packed[1] + o]);
                    *y += x.iter().enumerate().map(|(i, x)| x * w(i)).sum::<f64>();
                }
            }
            if !matches!(self.bias, Bias::None) {
                *y += f64::from(bias[o]);
            }
            if self.residual {
                *y += f64::from(residual[place]);
            }
            *y *= f64::from(self.scale);
            if self.relu {
                *y = y.max(0.0);
            }
        }
        y
    }

    fn conv(&self) -> Conv {
        let ([c_in, c_out], weights) = (self.packed, self.weights());
        let value = |tap: usize, i: usize, o: usize| weights[(tap * c_in + i) * c_out + o];
        Conv::new(self.method, self.places, [c_in, c_out], value)
    }

    #[track_caller]
    fn check(&self, rig: &mut Rig) {
        let conv = self.conv();
        let got = rig.run(|workspace, samples| self.run(&conv, workspace, samples));
        let tolerance = match self.method {
            Method::Direct => DIRECT,
            Method::Winograd(Filtering::F2) => F2,
            Method::Winograd(_) => MORE,
        };
        for (sample, got) in got.chunks_exact(got.len() / SAMPLES).enumerate() {
            let want = self.reference(sample);
            let scale = want.iter().fold(0f64, |max, value| max.max(value.abs()));
            let error = got.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
            assert!(error <= tolerance * scale, "{self:?}, sample {sample}: {:e}", error / scale);
        }
    }
}

const SIDES: [usize; 6] = [1, 2, 3, 5, 7, 14];

fn sizes() -> impl Iterator<Item = [usize; 2]> {
    SIDES.into_iter().flat_map(|height| SIDES.map(|width| [height, width]))
}

#[test]
fn a_convolution_is_right_on_maps_of_any_height_and_width() {
    let mut rig = Rig::new(1 << 13);
    let mut check = |method, places: Places, size: [usize; 2], channels| {
        if (0..2).all(|axis| size[axis] + 2 * places.pad[axis] >= places.kernel[axis]) {
            Case::new(method, places, size, channels).check(&mut rig);
        }
    };
    for size in sizes() {
        for filtering in FILTERINGS {
            let kernel = filtering.kernel();
            let [tall, wide] = kernel.map(|side| side / 2);
            for pad in [[tall, wide], [0, 0], [0, wide], [tall, 0]] {
                check(Method::Winograd(filtering), Places::new(kernel, 1, pad), size, [17, 5]);
            }
        }
        for [kernel, pad] in [[1, 0], [1, 1], [3, 0], [3, 1], [3, 2], [3, 3]] {
            check(Method::Direct, Places::square(kernel, 1, pad), size, [5, 17]);
        }
    }
}

const FILTERINGS: [Filtering; 7] = [
    Filtering::F2,
    Filtering::F4,
    Filtering::F2Of5,
    Filtering::F4InRow,
    Filtering::F4InColumn,
    Filtering::F3Of7InRow,
    Filtering::F3Of7InColumn,
];

/// Every method, on the kernels that it is for.
fn kernels() -> impl Iterator<Item = (Method, Places)> {
    let filtered = FILTERINGS.map(|filtering| (Method::Winograd(filtering), Places::same(filtering.kernel())));
    let direct = [3, 1].map(|side| (Method::Direct, Places::same([side; 2])));
    filtered.into_iter().chain(direct)
}

#[test]
fn a_convolution_is_right_for_any_number_of_channels() {
    let mut rig = Rig::new(1 << 13);
    for (method, places) in kernels() {
        for c_in in [1, 2, 15, 16, 33, 70] {
            for c_out in [1, 3, 16, 17, 48, 70] {
                Case::new(method, places, [5, 6], [c_in, c_out]).check(&mut rig);
            }
        }
    }
}

#[test]
fn fewer_inputs_and_outputs_than_packed_are_prefixes() {
    let mut rig = Rig::new(1 << 13);
    for (method, places) in kernels() {
        let whole = Case::new(method, places, [5, 6], [70, 70]);
        for kept_in in [1, 16, 37, 69] {
            for outputs in [1, 16, 37, 69] {
                Case { parts: vec![kept_in], outputs, ..whole.clone() }.check(&mut rig);
            }
        }
    }
}

#[test]
fn maps_side_by_side_are_read_as_one() {
    let mut rig = Rig::new(1 << 13);
    for (method, places) in kernels() {
        let pairs = [[1, 1], [3, 13], [16, 16], [17, 31], [35, 35], [40, 7]].map(|pair| pair.to_vec());
        for parts in pairs.into_iter().chain([vec![3, 13, 5], vec![16, 32, 48, 16, 1, 2]]) {
            for silu in [None, Some(true)] {
                let packed = [parts.iter().sum(), 19];
                let case = Case::new(method, places, [5, 6], packed);
                Case { parts: parts.clone(), silu, ..case }.check(&mut rig);
            }
        }
    }
}

#[test]
fn every_way_to_read_and_to_epilogue_is_right() {
    let mut rig = Rig::new(1 << 13);
    for (method, places) in kernels() {
        let plain = Case::new(method, places, [7, 5], [20, 21]);
        for silu in [None, Some(false), Some(true)] {
            for bias in [Bias::None, Bias::Shared, Bias::BySample] {
                for (residual, scale) in [(false, 1.0), (false, 0.25), (true, 1.0), (true, 0.7)] {
                    for relu in [false, true] {
                        Case { silu, bias, residual, scale, relu, ..plain.clone() }.check(&mut rig);
                    }
                }
            }
        }
    }
}

#[test]
fn a_map_that_is_cut_into_many_tasks_is_right() {
    let mut rig = Rig::new(1 << 17);
    for (method, places) in kernels() {
        for channels in [[70, 40], [300, 7]] {
            let case = Case::new(method, places, [33, 37], channels);
            Case { silu: Some(true), bias: Bias::BySample, residual: true, scale: 0.5, ..case }.check(&mut rig);
        }
    }
}

#[test]
fn a_sample_has_the_same_bits_in_a_large_batch() {
    let batch: Vec<usize> = (0..12).collect();
    for (method, places) in kernels() {
        let case = Case { bias: Bias::BySample, ..Case::new(method, places, [28, 28], [70, 70]) };
        let conv = case.conv();
        let mut workspaces = Rig::new(1).workspaces;
        let want: Vec<f32> = batch.iter().flat_map(|&i| case.run(&conv, &mut workspaces[0], &[i])).collect();
        for workspace in &mut workspaces {
            let got = case.run(&conv, workspace, &batch);
            assert!(super::same_bits(&got, &want), "{case:?} on {} threads", workspace.team.threads());
        }
    }
}

#[test]
fn winograd_is_for_usual_kernels_on_every_pixel_of_enough_inputs() {
    for pad in [0, 1] {
        assert_eq!(Method::of(Places::square(3, 1, pad), 16, 7), Method::Winograd(Filtering::F2));
        assert_eq!(Method::of(Places::square(3, 1, pad), 16, 14), Method::Winograd(Filtering::F4));
    }
    for filtering in FILTERINGS {
        let Method::Winograd(chosen) = Method::of(Places::same(filtering.kernel()), 16, 14) else {
            panic!("{filtering:?}");
        };
        assert_eq!(chosen.kernel(), filtering.kernel());
    }
    for (places, c_in) in [
        (Places::square(1, 1, 0), 64),
        (Places::square(3, 1, 2), 64),
        (Places::square(3, 2, 1), 64),
        (Places::same([5, 3]), 64),
        (Places { pad: [1, 1], ..Places::same([1, 3]) }, 64),
        (Places::square(3, 1, 1), 1),
    ] {
        for side in [7, 14] {
            assert_eq!(Method::of(places, c_in, side), Method::Direct);
        }
    }
}

#[test]
fn kernels_of_any_rows_and_columns_and_strides_are_right() {
    let mut rig = Rig::new(1 << 15);
    for kernel in [[1, 7], [7, 1], [1, 3], [3, 1], [5, 5], [2, 3]] {
        for (stride, pad) in [(1, kernel.map(|side| side / 2)), (1, [0, 1]), (2, [0, 0]), (2, [1, 0])] {
            let size = [9, 8];
            if (0..2).all(|axis| size[axis] + 2 * pad[axis] >= kernel[axis]) {
                for channels in [[3, 17], [16, 40], [20, 5]] {
                    let case = Case::new(Method::Direct, Places::new(kernel, stride, pad), size, channels);
                    let case = Case { bias: Bias::Shared, relu: true, ..case };
                    case.check(&mut rig);
                    // A prefix of the inputs, and a border on one side alone.
                    Case { parts: vec![channels[0] - 1], ..case.clone() }.check(&mut rig);
                    Case { places: Places { after: 1, ..case.places }, ..case }.check(&mut rig);
                }
            }
        }
    }
}

use super::super::linear::{Linear, Output, run};
use super::super::panels::{PANEL, pitch};
use super::{Rig, SAMPLES, joined, sample_values};
use crate::ops::cpu::testing::{assert_close, values};

struct Layer {
    weights: Vec<f32>,
    bias: Vec<f32>,
    c_out: usize,
    packed: Linear,
}

impl Layer {
    fn new(seed: u64, c_in: usize, c_out: usize) -> Self {
        let (weights, bias) = (values(seed, c_in * c_out), values(seed + 1, c_out));
        let packed = Linear::new([c_in, c_out], &bias, |i, o| weights[i * c_out + o]);
        Self { weights, bias, c_out, packed }
    }

    fn reference(&self, x: &[f32], channels: usize) -> Vec<f64> {
        let product = |o: usize| {
            let terms = x.iter().enumerate().map(|(i, &x)| f64::from(x) * f64::from(self.weights[i * self.c_out + o]));
            terms.sum::<f64>() + f64::from(self.bias[o])
        };
        (0..channels).map(product).collect()
    }
}

#[test]
fn several_layers_on_the_same_rows_match_plain_f64_loops() {
    let mut rig = Rig::new(1 << 6);
    for c_in in [1, 7, 16, 33, 128] {
        let x = |sample: usize| sample_values(5, sample, c_in);
        // Full and kept outputs; with more than four panels a layer is several tasks.
        let wanted = [(1, 1), (16, 16), (17, 3), (70, 70), (100, 81), (40, 32)];
        let layers: Vec<Layer> = (0..).zip(wanted).map(|(i, (c_out, _))| Layer::new(10 * i, c_in, c_out)).collect();
        let mut y_pitch = PANEL; // a line before the first that belongs to nobody
        let outputs: Vec<Output> = layers
            .iter()
            .zip(wanted)
            .map(|(layer, (_, channels))| {
                let offset = y_pitch;
                y_pitch += pitch(channels);
                Output { layer: &layer.packed, channels, offset }
            })
            .collect();
        let x_pitch = pitch(c_in) + PANEL;
        let got = rig.run(|workspace, samples| {
            let rows = joined(samples, |sample| {
                let mut row = x(sample);
                row.resize(x_pitch, f32::NAN);
                row
            });
            let mut y = vec![f32::NAN; samples.len() * y_pitch];
            run(&mut workspace.team, &rows, x_pitch, &outputs, &mut y, y_pitch);
            let rows = y.chunks_exact(y_pitch);
            rows.flat_map(|row| outputs.iter().flat_map(|output| &row[output.offset..][..output.channels]))
                .copied()
                .collect()
        });
        for (sample, got) in got.chunks_exact(got.len() / SAMPLES).enumerate() {
            let want =
                layers.iter().zip(wanted).flat_map(|(layer, (_, channels))| layer.reference(&x(sample), channels));
            // Sums of up to 128 products in f32.
            assert_close(got, &want.collect::<Vec<_>>(), 1e-6);
        }
    }
}

use super::super::panels::pitch;
use super::super::resample::{copy, resample};
use super::super::{Map, Source, Workspace};
use super::{Rig, SAMPLES, Slopes, activated, dense, joined, map, sample_values, side_by_side};
use crate::ops::cpu::resample::{Direction, Resampler};
use crate::ops::cpu::testing::{assert_close, widen};

#[test]
fn a_copy_of_a_source_is_its_maps_side_by_side_normalised_and_activated() {
    let mut rig = Rig::new(1 << 12);
    for [height, width] in [[1, 1], [1, 5], [3, 2], [7, 7], [14, 13]] {
        for parts in [&[1][..], &[16], &[33], &[3, 13], &[17, 31], &[1, 2, 30]] {
            for silu in [None, Some(false), Some(true)] {
                let channels = parts.iter().sum();
                let part = |index: usize, sample| sample_values(index as u64, sample, height * width * parts[index]);
                let got = rig.run(|workspace: &mut Workspace, samples| {
                    let maps = (0..parts.len()).map(|index| {
                        let dense = joined(samples, |sample| part(index, sample));
                        map(workspace, [height, width, parts[index]], &dense)
                    });
                    let maps: Vec<Map> = maps.collect();
                    let slopes = Slopes::new(samples, channels);
                    let views: Vec<&Map> = maps.iter().collect();
                    let source = Source { parts: &views, affine: silu.map(|silu| slopes.affine(silu)) };
                    let mut y = workspace.arena.map([samples.len(), height, width, channels]);
                    copy(workspace, source, &mut y);
                    maps.into_iter().for_each(|map| workspace.arena.put(map));
                    dense(workspace, y)
                });
                for (sample, got) in got.chunks_exact(got.len() / SAMPLES).enumerate() {
                    let parts: Vec<_> = (0..parts.len()).map(|index| (parts[index], part(index, sample))).collect();
                    let want = activated(sample, channels, silu, side_by_side(&parts));
                    // One multiply-add and one sigmoid in f32.
                    assert_close(got, &want, if silu.is_some() { 3e-7 } else { 0.0 });
                }
            }
        }
    }
}

/// `y[o] = sum over taps`, by the definition of [`Direction`], of a map `[height, width, channels]`.
fn reference(direction: Direction, x: &[f64], size: [usize; 3], filter: &[f32], pad: usize) -> Vec<f64> {
    let [height, width, channels] = size;
    let [out_height, out_width] = [height, width].map(|side| direction.size(side, filter.len(), pad));
    let filter: Vec<f64> =
        filter.iter().map(|&f| f64::from(f) / filter.iter().map(|&f| f64::from(f)).sum::<f64>()).collect();
    let mut y = vec![0.0; out_height * out_width * channels];
    for (fy, fx) in (0..filter.len()).flat_map(|fy| (0..filter.len()).map(move |fx| (fy, fx))) {
        let weight = filter[fy] * filter[fx] * f64::from(direction.gain());
        for (iy, ix) in (0..height).flat_map(|iy| (0..width).map(move |ix| (iy, ix))) {
            // The output that this tap joins this input to.
            let [oy, ox] = [(iy, fy), (ix, fx)].map(|(i, f)| match direction {
                // i = 2 o + f - pad
                Direction::Down => (i + pad).checked_sub(f).filter(|twice| twice % 2 == 0).map(|twice| twice / 2),
                Direction::Up => (2 * i + f).checked_sub(pad),
            });
            let (Some(oy), Some(ox)) = (oy, ox) else { continue };
            if oy < out_height && ox < out_width {
                for c in 0..channels {
                    y[(oy * out_width + ox) * channels + c] += weight * x[(iy * width + ix) * channels + c];
                }
            }
        }
    }
    y
}

#[test]
fn resampling_matches_its_definition() {
    let mut rig = Rig::new(1 << 13);
    let filters: [&[f32]; 3] = [&[1.0, 1.0], &[1.0, 3.0, 3.0, 1.0], &[1.0, 2.0, 3.0, 5.0]];
    for direction in [Direction::Down, Direction::Up] {
        for filter in filters {
            for size @ [height, width, channels] in
                [[1, 1, 3], [2, 2, 1], [3, 2, 16], [5, 7, 17], [7, 5, 33], [14, 14, 20], [4, 28, 40]]
            {
                for pad in [0, (filter.len() - 1) / 2] {
                    let fits = |side: usize| match direction {
                        Direction::Down => side + 2 * pad >= filter.len(),
                        Direction::Up => (side - 1) * 2 + filter.len() > 2 * pad,
                    };
                    if !fits(height) || !fits(width) {
                        continue;
                    }
                    let input = [height, width, pitch(channels)];
                    let resampler = Resampler::new(direction, input, filter, pad, direction.gain());
                    let x = |sample| sample_values(3, sample, height * width * channels);
                    let got = rig.run(|workspace, samples| {
                        let x = map(workspace, size, &joined(samples, x));
                        let [height, width] = resampler.output();
                        let mut y = workspace.arena.map([samples.len(), height, width, channels]);
                        resample(workspace, &resampler, &x, &mut y);
                        workspace.arena.put(x);
                        dense(workspace, y)
                    });
                    for (sample, got) in got.chunks_exact(got.len() / SAMPLES).enumerate() {
                        // Sums of at most sixteen products in f32.
                        assert_close(got, &reference(direction, &widen(&x(sample)), size, filter, pad), 5e-7);
                    }
                }
            }
        }
    }
}

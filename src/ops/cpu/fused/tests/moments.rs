use super::super::moments::Normalisation;
use super::super::resample::copy;
use super::super::{Map, Source};
use super::{Rig, SAMPLES, dense, joined, map, sample_values, side_by_side};
use crate::ops::cpu::group_norm::GroupTable;
use crate::ops::cpu::testing::{assert_close, values};

const EPS: f32 = 1e-6;

/// A normalisation and the values that it is tried on: `mean + spread * z`, z roughly normal.
#[derive(Clone, Debug)]
struct Case {
    size: [usize; 2],
    parts: Vec<usize>,
    group_of: Vec<u32>,
    mean: f32,
    spread: f32,
    /// Added to the first pixel.
    corner: f32,
}

impl Case {
    fn new(size: [usize; 2], parts: &[usize], group_of: Vec<u32>) -> Self {
        assert_eq!(parts.iter().sum::<usize>(), group_of.len());
        Self { size, parts: parts.to_vec(), group_of, mean: 0.3, spread: 1.0, corner: 0.0 }
    }

    fn channels(&self) -> usize {
        self.group_of.len()
    }

    fn part(&self, index: usize, sample: usize) -> Vec<f32> {
        let z = sample_values(20 + index as u64, sample, self.size[0] * self.size[1] * self.parts[index]);
        // Samples differ in more than their noise.
        let mut x: Vec<f32> = z.iter().map(|z| (sample + 1) as f32 * (self.mean + self.spread * z)).collect();
        x[..self.parts[index]].iter_mut().for_each(|x| *x += self.corner);
        x
    }

    fn scale_and_shift(&self) -> (Vec<f32>, Vec<f32>) {
        (values(31, self.channels()), values(32, self.channels()))
    }

    /// The normalised values, and the tolerance that they deserve.
    fn reference(&self, sample: usize) -> (Vec<f64>, f64) {
        let parts: Vec<_> = (0..self.parts.len()).map(|index| (self.parts[index], self.part(index, sample))).collect();
        let (mut x, (scale, shift)) = (side_by_side(&parts), self.scale_and_shift());
        let channels = self.channels();
        let mut tolerance = 0f64;
        let moments: Vec<_> = (0..=*self.group_of.iter().max().unwrap())
            .map(|group| {
                let members = x.iter().enumerate().filter(|(i, _)| self.group_of[i % channels] == group);
                let members: Vec<f64> = members.map(|(_, x)| *x).collect();
                let n = members.len() as f64;
                let mean = members.iter().sum::<f64>() / n;
                let variance = members.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                let deviation = (variance + f64::from(EPS)).sqrt();
                // The first pixel is where sums of squares are taken from.
                let far = (0..channels).filter(|&c| self.group_of[c] == group).map(|c| (x[c] - mean).abs() / deviation);
                let far = far.fold(0.0, f64::max);
                // `x slope + shift` with both rounded to f32, and sums of `1 + far^2` variances in f32.
                tolerance = tolerance.max(1e-6 + 2e-7 * mean.abs() / deviation + 1e-7 * far * far);
                (mean, deviation)
            })
            .collect();
        for (i, x) in x.iter_mut().enumerate() {
            let c = i % channels;
            let (mean, deviation) = moments[self.group_of[c] as usize];
            *x = (*x - mean) / deviation * f64::from(scale[c]) + f64::from(shift[c]);
        }
        (x, tolerance)
    }

    #[track_caller]
    fn check(&self, rig: &mut Rig) {
        let ([height, width], (scale, shift)) = (self.size, self.scale_and_shift());
        let table = GroupTable::new(self.group_of.clone());
        let got = rig.run(|workspace, samples| {
            let maps = (0..self.parts.len()).map(|index| {
                let dense = joined(samples, |sample| self.part(index, sample));
                map(workspace, [height, width, self.parts[index]], &dense)
            });
            let maps: Vec<Map> = maps.collect();
            let views: Vec<&Map> = maps.iter().collect();
            let normalisation = Normalisation::new(workspace, &views, &table, &scale, &shift, EPS, None);
            let mut y = workspace.arena.map([samples.len(), height, width, self.channels()]);
            let source = Source { parts: &views, affine: Some(normalisation.affine(false)) };
            copy(workspace, source, &mut y);
            normalisation.put(&mut workspace.arena);
            maps.into_iter().for_each(|map| workspace.arena.put(map));
            dense(workspace, y)
        });
        for (sample, got) in got.chunks_exact(got.len() / SAMPLES).enumerate() {
            let (want, tolerance) = self.reference(sample);
            assert_close(got, &want, tolerance);
        }
    }
}

/// `channels` in runs of `share`.
fn runs(channels: usize, share: usize) -> Vec<u32> {
    (0..channels).map(|channel| (channel / share) as u32).collect()
}

/// Groups that interleave and are of unequal sizes.
fn scattered(channels: usize, groups: usize) -> Vec<u32> {
    (0..channels).map(|channel| (channel * channel / 3 % groups) as u32).collect()
}

#[test]
fn maps_of_any_size_are_normalised_as_by_plain_f64_loops() {
    let mut rig = Rig::new(1 << 12);
    for size in [[1, 1], [1, 2], [3, 1], [5, 7], [7, 7], [8, 8], [5, 13], [14, 14]] {
        for (channels, share) in [(4, 4), (8, 4), (20, 4), (33, 3), (70, 7), (64, 2)] {
            Case::new(size, &[channels], runs(channels, share)).check(&mut rig);
        }
    }
}

#[test]
fn groups_may_interleave_and_differ_in_size() {
    let mut rig = Rig::new(1 << 12);
    for (channels, groups) in [(5, 2), (17, 5), (40, 7), (70, 16)] {
        Case::new([5, 7], &[channels], scattered(channels, groups)).check(&mut rig);
    }
}

#[test]
fn a_group_may_reach_over_two_maps() {
    let mut rig = Rig::new(1 << 12);
    for parts in [[1, 3], [3, 13], [17, 31], [32, 32], [40, 7]] {
        let channels = parts[0] + parts[1];
        Case::new([7, 5], &parts, runs(channels, 4)).check(&mut rig);
        Case::new([7, 5], &parts, scattered(channels, 6)).check(&mut rig);
    }
}

#[test]
fn a_mean_far_above_the_spread_does_not_drown_it() {
    let mut rig = Rig::new(1 << 12);
    for (mean, spread) in [(10.0, 0.1), (-100.0, 1.0), (1000.0, 0.1), (-3e-3, 3e-3), (0.0, 1e4)] {
        for parts in [&[20][..], &[13, 7]] {
            let case = Case::new([14, 13], parts, runs(20, 4));
            Case { mean, spread, ..case }.check(&mut rig);
        }
    }
}

#[test]
fn a_constant_group_becomes_its_shift() {
    let mut rig = Rig::new(1 << 10);
    let case = Case::new([5, 3], &[8], runs(8, 4));
    // 0.75 and its multiples are exact: the deviation is 0, and eps alone divides.
    Case { mean: 0.75, spread: 0.0, ..case }.check(&mut rig);
}

#[test]
fn a_first_pixel_unlike_the_others_does_no_harm() {
    let mut rig = Rig::new(1 << 12);
    for corner in [10.0, -100.0, 1000.0] {
        let case = Case::new([14, 14], &[20], runs(20, 4));
        Case { corner, ..case }.check(&mut rig);
    }
}

//! Adam and the average of the weights, on the active channels only.

use super::config::Stage;
use rayon::prelude::*;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f32 = 1e-8;

/// The prefix block of a full-width tensor that a subnet keeps.
pub struct Region<'a> {
    /// Shape of the whole tensor.
    pub full: &'a [usize],
    /// Kept length along each axis.
    pub kept: &'a [usize],
}

impl<'a> Region<'a> {
    /// All of a tensor of this shape.
    pub fn whole(shape: &'a [usize]) -> Self {
        Self { full: shape, kept: shape }
    }

    /// Calls `visit(offset in the whole tensor, offset in the contiguous block, length)` for each contiguous run.
    fn runs(&self, mut visit: impl FnMut(usize, usize, usize)) {
        // Trailing axes that are kept whole merge into the run.
        let whole = self.full.iter().zip(self.kept).rev().take_while(|(full, kept)| full == kept).count();
        let split = self.full.len() - (whole + 1).min(self.full.len());
        let run: usize = self.kept[split..].iter().product();
        let stride: usize = self.full[split..].iter().product();
        let rows: usize = self.kept[..split].iter().product();
        for row in 0..rows {
            let (mut rest, mut place, mut stride) = (row, 0, stride);
            for axis in (0..split).rev() {
                place += rest % self.kept[axis] * stride;
                rest /= self.kept[axis];
                stride *= self.full[axis];
            }
            visit(place, row * run, run);
        }
    }

    /// Adds the block to the whole tensor.
    pub fn add(&self, whole: &mut [f32], block: &[f32]) {
        self.runs(|place, at, len| {
            whole[place..place + len].iter_mut().zip(&block[at..at + len]).for_each(|(sum, value)| *sum += value);
        });
    }
}

/// What Adam remembers of one parameter, and the average of its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// The values.
    pub value: Vec<f32>,
    /// First moment.
    pub m: Vec<f32>,
    /// Second moment.
    pub v: Vec<f32>,
    /// Updates that each element has had: an element of an inactive channel has had fewer, and its bias correction knows.
    pub updates: Vec<u32>,
    /// Exponential moving average of the values.
    pub average: Vec<f32>,
}

impl Slot {
    /// Before the first step.
    pub fn new(value: Vec<f32>) -> Self {
        let len = value.len();
        Self { average: value.clone(), value, m: vec![0.0; len], v: vec![0.0; len], updates: vec![0; len] }
    }
}

/// Adam (Kingma and Ba 2015) with decoupled decay (Loshchilov and Hutter 2019). Moments, decay and bias correction of a
/// channel stand still in the steps that do not run it.
pub struct Adam {
    /// Bias corrections `1 / (1 - beta^k)` of both moments after k updates; constant beyond the table.
    corrections: Vec<(f32, f32)>,
}

impl Default for Adam {
    fn default() -> Self {
        let correction = |k: i32| ((1.0 / (1.0 - BETA1.powi(k))) as f32, (1.0 / (1.0 - BETA2.powi(k))) as f32);
        Self { corrections: (1..=20_000).map(correction).collect() }
    }
}

impl Adam {
    /// One step: `gradients[i]` is the gradient of the block that `regions[i]` keeps of `slots[i]`, `None` where nothing
    /// flows. Gradients are scaled so that their joint norm is at most `stage.gradient_clip`; returns the norm before. Where
    /// it is not finite, the step is not made.
    pub fn step(
        &self,
        slots: &mut [Slot],
        regions: &[Region],
        gradients: &[Option<Vec<f32>>],
        stage: &Stage,
        seen: u64,
    ) -> f64 {
        let squares = gradients
            .par_iter()
            .map(|gradient| gradient.as_ref().map_or(0.0, |g| g.iter().map(|g| *g as f64 * *g as f64).sum::<f64>()));
        // Summed in order: the result must not depend on how the work was split.
        let norm = squares.collect::<Vec<f64>>().iter().sum::<f64>().sqrt();
        if !norm.is_finite() {
            return norm;
        }
        let clip = if norm > stage.gradient_clip { (stage.gradient_clip / norm) as f32 } else { 1.0 };
        let rate = stage.rate(seen) as f32;
        let decay = 1.0 - rate * stage.weight_decay as f32;
        let keep = stage.ema_keep(seen + stage.batch as u64) as f32;
        slots.par_iter_mut().zip(regions).zip(gradients).for_each(|((slot, region), gradient)| {
            let update = |gradient: &[f32]| {
                region.runs(|place, at, len| {
                    let range = place..place + len;
                    let state = slot.value[range.clone()]
                        .iter_mut()
                        .zip(&mut slot.m[range.clone()])
                        .zip(&mut slot.v[range.clone()])
                        .zip(&mut slot.updates[range]);
                    for ((((value, m), v), updates), gradient) in state.zip(&gradient[at..at + len]) {
                        let g = gradient * clip;
                        *m += (1.0 - BETA1 as f32) * (g - *m);
                        *v += (1.0 - BETA2 as f32) * (g * g - *v);
                        let (first, second) = self.corrections[(*updates as usize).min(self.corrections.len() - 1)];
                        *updates += 1;
                        *value = *value * decay - rate * (*m * first) / ((*v * second).sqrt() + EPSILON);
                    }
                })
            };
            gradient.as_deref().into_iter().for_each(update);
            // Also of what the step has left out: the average is over steps.
            slot.average.iter_mut().zip(&slot.value).for_each(|(mean, value)| *mean = value + keep * (*mean - value));
        });
        norm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage() -> Stage {
        Stage {
            images: 1000,
            batch: 1,
            learning_rate: 0.1,
            warmup_images: 0,
            final_share: 1.0,
            ema_half_life: 1.0,
            gradient_clip: 1e9,
            weight_decay: 0.01,
            text_encoder: false,
        }
    }

    #[test]
    fn a_region_visits_exactly_its_prefix_block() {
        let (full, kept) = ([3, 4, 5, 2], [3, 2, 3, 2]);
        let mut whole = vec![0.0; 120];
        let block: Vec<f32> = (1..=36).map(|i| i as f32).collect();
        Region { full: &full, kept: &kept }.add(&mut whole, &block);
        for (i, value) in whole.iter().enumerate() {
            let (a, b, c, d) = (i / 40, i / 10 % 4, i / 2 % 5, i % 2);
            let want = if b < 2 && c < 3 { ((a * 2 + b) * 3 + c) * 2 + d + 1 } else { 0 };
            assert_eq!(*value, want as f32, "element {i}");
        }
        let mut whole = vec![0.0; 6];
        Region { full: &[6], kept: &[6] }.add(&mut whole, &[1.0; 6]);
        assert_eq!(whole, [1.0; 6]);
    }

    #[test]
    fn inactive_channels_keep_values_and_moments_to_the_bit() {
        let mut slots = [Slot::new(vec![1.0, -2.0, 3.0, 4.0])];
        let adam = Adam::default();
        let wide = [Region { full: &[2, 2], kept: &[2, 2] }];
        adam.step(&mut slots, &wide, &[Some(vec![0.5, -0.25, 1.0, 2.0])], &stage(), 0);
        let before = slots[0].clone();
        let narrow = [Region { full: &[2, 2], kept: &[2, 1] }];
        adam.step(&mut slots, &narrow, &[Some(vec![3.0, 3.0])], &stage(), 1);
        for (i, active) in [true, false, true, false].into_iter().enumerate() {
            assert_eq!(slots[0].value[i] != before.value[i], active, "value {i}");
            assert_eq!(slots[0].m[i] != before.m[i], active, "m {i}");
            assert_eq!(slots[0].v[i] != before.v[i], active, "v {i}");
            assert_eq!(slots[0].updates[i], 1 + active as u32, "updates {i}");
        }
    }

    #[test]
    fn the_first_step_of_a_channel_has_the_learning_rate_as_length_whenever_it_comes() {
        // Bias correction by the channel's own count: a global count would make late channels jump.
        let mut slots = [Slot::new(vec![0.0, 0.0])];
        let adam = Adam::default();
        let flat = Stage { weight_decay: 0.0, ..stage() };
        for step in 0..50 {
            adam.step(&mut slots, &[Region { full: &[2], kept: &[1] }], &[Some(vec![0.3])], &flat, step);
        }
        adam.step(&mut slots, &[Region { full: &[2], kept: &[2] }], &[Some(vec![0.3, 0.3])], &flat, 50);
        assert!((slots[0].value[1] + 0.1).abs() < 1e-6, "{}", slots[0].value[1]);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut slots = [Slot::new(vec![1.0, 2.0])];
            let regions = [Region { full: &[2], kept: &[2] }];
            let norm = Adam::default().step(&mut slots, &regions, &[Some(vec![0.5, bad])], &stage(), 0);
            assert!(!norm.is_finite(), "{norm}");
            assert_eq!(slots, [Slot::new(vec![1.0, 2.0])]);
        }
    }

    #[test]
    fn a_large_gradient_is_scaled_to_the_clip_and_its_norm_reported() {
        let clipped = Stage { gradient_clip: 1.0, weight_decay: 0.0, ..stage() };
        let mut slots = [Slot::new(vec![0.0, 0.0])];
        let norm = Adam::default().step(
            &mut slots,
            &[Region { full: &[2], kept: &[2] }],
            &[Some(vec![30.0, 40.0])],
            &clipped,
            0,
        );
        assert_eq!(norm, 50.0);
        assert!((slots[0].m[0] - 0.1 * 0.6).abs() < 1e-7 && (slots[0].m[1] - 0.1 * 0.8).abs() < 1e-7);
    }
}

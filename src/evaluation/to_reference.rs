//! How good the images of a plan are, against those of the best plan.

use super::drawing::{Recipe, Start, draw, starts};
use super::yardstick::Rating;
use crate::diffusion::Plan;
use crate::features::sample::mean_and_deviation;
use crate::nets::Denoiser;
use crate::{Error, Result};

/// The plan that every other is compared with: EDM's own number of steps, at full width.
pub const REFERENCE: &str = "heun-18@full";

/// The plan [`REFERENCE`].
pub fn reference() -> Plan {
    REFERENCE.parse().expect("the reference parses")
}

/// The reference's images of a fixed set of seeds and classes: what other plans are measured with.
#[derive(Clone, Debug)]
pub struct ToReference {
    /// The scale of guidance that all are drawn under.
    guidance: f64,
    starts: Vec<Start>,
    images: Vec<Vec<f64>>,
    unrelated: f64,
}

impl ToReference {
    /// Draws, under the model's usual guidance, the reference's images of the seeds 0 to `images` - 1 (at least 2). Classes take turns, every one at least
    /// twice: with fewer than two images a class, some classes are left out.
    ///
    /// # Errors
    /// If the images are no numbers or do not depend on the seed, or the device fails.
    pub fn new(denoiser: &mut dyn Denoiser, images: usize) -> Result<Self> {
        let starts = starts(images.max(2), denoiser.about().classes.len());
        let guidance = denoiser.about().usual_guidance();
        let images = draw(denoiser, &starts, &Recipe { plan: reference(), guidance })?;
        let unrelated = unrelated(&starts, &images);
        if !(unrelated.is_finite() && unrelated > 0.0) {
            let problem = format!("differ by {unrelated} in the mean square: no plan can be compared with them");
            return Err(Error::input("model", format!("the images of {REFERENCE} of different seeds {problem}")));
        }
        Ok(Self { guidance, starts, images, unrelated })
    }

    /// How many images there are.
    pub fn images(&self) -> usize {
        self.images.len()
    }

    /// The mean squared distance, by pixel in [-1, 1], of two images of one class and different seeds.
    pub fn unrelated(&self) -> f64 {
        self.unrelated
    }

    /// How good `plan` is by the first `images` of the reference's: its quality is 1 less the mean squared distance of its images
    /// to the reference's of the same seed and class, over that of [`Self::unrelated`] ones. 1 is the reference, 0 no better than
    /// another seed's image; a blur, the mean of its class, has 0.5, since unrelated images are twice their variance apart. Not
    /// finite where the plan's images are not.
    ///
    /// # Errors
    /// If the device fails or the model lacks a subnet.
    pub fn rate(&self, denoiser: &mut dyn Denoiser, plan: &Plan, images: usize) -> Result<Rating> {
        let starts = &self.starts[..images.min(self.starts.len())];
        let drawn = draw(denoiser, starts, &Recipe { plan: plan.clone(), guidance: self.guidance })?;
        let distances: Vec<f64> =
            drawn.iter().zip(&self.images).map(|(image, reference)| distance(image, reference)).collect();
        let (mean, deviation) = mean_and_deviation(&distances);
        let error = deviation / (distances.len() as f64).sqrt() / self.unrelated;
        Ok(Rating { distance: mean, quality: 1.0 - mean / self.unrelated, error })
    }
}

/// The mean squared distance over all pairs of images that share a class.
pub(crate) fn unrelated(starts: &[Start], images: &[Vec<f64>]) -> f64 {
    let mut classes: Vec<Option<usize>> = starts.iter().map(|start| start.class).collect();
    classes.sort_unstable();
    classes.dedup();
    let (mut sum, mut pairs) = (0.0, 0.0);
    for class in classes {
        let members = || starts.iter().zip(images).filter(|(start, _)| start.class == class).map(|(_, image)| image);
        let count = members().count() as f64;
        let mut mean = vec![0.0; images[0].len()];
        for image in members() {
            mean.iter_mut().zip(image).for_each(|(mean, value)| *mean += value / count);
        }
        // The squared distances of all pairs add up to `count` times those to the mean.
        sum += count * members().map(|image| distance(image, &mean)).sum::<f64>();
        pairs += count * (count - 1.0) / 2.0;
    }
    sum / pairs
}

/// The mean squared difference of two images.
pub(crate) fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / a.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Solver;
    use crate::engine::gaussian::Gaussian;

    /// Of `plans`, on a denoiser whose images differ in their noise alone.
    fn qualities(plans: &[&str]) -> Vec<f64> {
        let (mut denoiser, _) = Gaussian::unconditional();
        let yardstick = ToReference::new(&mut *denoiser, 40).unwrap();
        let quality = |plan: &&str| yardstick.rate(&mut *denoiser, &plan.parse().unwrap(), 40).unwrap().quality;
        plans.iter().map(quality).collect()
    }

    #[test]
    fn the_reference_has_quality_one_and_a_blur_has_one_half() {
        let found = qualities(&[REFERENCE, "dpmpp2m-1@full"]);
        assert_eq!(found[0], 1.0);
        assert!((found[1] - 0.5).abs() < 0.03, "{found:?}");
    }

    #[test]
    fn quality_falls_with_fewer_steps() {
        for solver in [Solver::Heun, Solver::Euler, Solver::DpmPp2m] {
            let steps = [24, 8, 5, 3, 2, 1].into_iter();
            // Heun's correction overshoots where steps are few.
            let steps = steps.filter(|&steps| solver != Solver::Heun || steps >= 5);
            let plans: Vec<String> = steps.map(|steps| format!("{solver}-{steps}@full")).collect();
            let found = qualities(&plans.iter().map(String::as_str).collect::<Vec<_>>());
            assert!(found.is_sorted_by(|more, fewer| more > fewer), "{solver}: {found:?}");
        }
    }

    #[test]
    fn quality_falls_with_the_width_and_a_schedule_lies_between() {
        let (mut denoiser, _) = Gaussian::conditional();
        let yardstick = ToReference::new(&mut *denoiser, 8).unwrap();
        let plans = ["heun-18@full", "heun-18@0.250*6,full*12", "heun-18@0.250*12,full*6", "heun-18@0.250"];
        let found = plans.map(|plan| yardstick.rate(&mut *denoiser, &plan.parse().unwrap(), 40).unwrap().quality);
        assert!(found.is_sorted_by(|wide, narrow| wide > narrow), "{found:?}");
    }

    #[test]
    fn unrelated_images_are_as_far_apart_as_all_pairs_of_a_class_are() {
        let (mut denoiser, _) = Gaussian::conditional();
        let yardstick = ToReference::new(&mut *denoiser, 7).unwrap();
        let mut pairs = Vec::new();
        for (a, first) in yardstick.starts.iter().zip(&yardstick.images) {
            for (b, second) in yardstick.starts.iter().zip(&yardstick.images) {
                if a.class == b.class && a.seed < b.seed {
                    pairs.push(distance(first, second));
                }
            }
        }
        assert_eq!(pairs.len(), 6 + 3);
        let mean = pairs.iter().sum::<f64>() / pairs.len() as f64;
        assert!((yardstick.unrelated() / mean - 1.0).abs() < 1e-12);
        // The classes' means, 1 apart, would show: the images of one class have a standard deviation of 0.25.
        assert!((yardstick.unrelated() - 2.0 * 0.25 * 0.25).abs() < 0.03, "{}", yardstick.unrelated());
    }

    #[test]
    fn the_same_plan_has_the_same_quality_to_the_bit() {
        let plan = "dpmpp2m-3@0.500*2,full*1";
        let [first, again] = [(); 2].map(|()| qualities(&[plan])[0].to_bits());
        assert_eq!(first, again);
    }

    #[test]
    fn a_plan_of_a_subnet_that_the_model_lacks_and_a_model_without_numbers_are_refused() {
        let (mut denoiser, gate) = Gaussian::conditional();
        let yardstick = ToReference::new(&mut *denoiser, 2).unwrap();
        let error = yardstick.rate(&mut *denoiser, &"euler-2@0.125".parse().unwrap(), 2).unwrap_err().to_string();
        assert_eq!(error, "plan: the model has no `0.125`");
        gate.fail_next(crate::engine::gaussian::Fault::NotFinite);
        let error = ToReference::new(&mut *denoiser, 2).unwrap_err().to_string();
        assert!(error.starts_with("model: the images of heun-18@full of different seeds differ by NaN"), "{error}");
    }
}

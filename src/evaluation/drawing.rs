//! Images of a plan, many at a time: what quality is measured on.

use crate::diffusion::{Plan, Trajectory, guide};
use crate::nets::{Condition, Denoiser, Rows};
use crate::ops::pixels::byte;
use crate::{Error, Result};
use std::sync::Arc;

/// Images in one call.
pub const BATCH: usize = 16;

/// Where an image starts: its noise and its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its noise.
    pub seed: u64,
    /// Its class; `None` for a model without.
    pub class: Option<usize>,
}

/// How images are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The plan.
    pub plan: Plan,
    /// The scale of classifier-free guidance; 1 is none.
    pub guidance: f64,
}

impl From<Plan> for Recipe {
    /// Without guidance.
    fn from(plan: Plan) -> Self {
        Self { plan, guidance: 1.0 }
    }
}

/// Seeds from 0, with classes in turn; as many classes, spread over all, as have two images each.
pub fn starts(images: usize, classes: usize) -> Vec<Start> {
    let turns = classes.min(images / 2);
    let class = |index: usize| index.checked_rem(turns).map(|turn| turn * classes / turns);
    (0..images).map(|index| Start { seed: index as u64, class: class(index) }).collect()
}

/// Seeds from `seed`, with all classes in turn: the first of many are those of few.
pub fn starts_in_turn(seed: u64, images: usize, classes: usize) -> Vec<Start> {
    let start = |index: usize| Start { seed: seed.wrapping_add(index as u64), class: index.checked_rem(classes) };
    (0..images).map(start).collect()
}

/// The pictures of a recipe, in the order of `starts`, in [-1, 1]; latents are decoded by the plan's decoder. Those of one call are at the same step, so on the same
/// subnet.
///
/// # Errors
/// If the model lacks a subnet, or the device fails.
pub fn draw(denoiser: &mut dyn Denoiser, starts: &[Start], recipe: &Recipe) -> Result<Vec<Vec<f64>>> {
    let process = denoiser.about().process;
    let unfit = |problem| Error::input("plan", format!("{}: {problem}", recipe.plan));
    recipe.plan.check_from_noise(&process).map_err(unfit)?;
    let (plan, image) = (Arc::new(recipe.plan.clone()), denoiser.about().state());
    let decoder = denoiser.about().decoder(&plan);
    let decoder = decoder.ok_or_else(|| unfit(format!("the model has no decoder `{}`", plan.decode)))?;
    let elements = image.elements();
    let mut images = Vec::with_capacity(starts.len());
    for starts in starts.chunks(BATCH) {
        let conditions: Vec<Condition> = starts.iter().map(|start| start.class.into()).collect();
        let nothing = vec![Condition::None; starts.len()];
        let is_guided = recipe.guidance != 1.0 && conditions != nothing;
        let begin = |start: &Start| Trajectory::new(plan.clone(), process, start.seed, 0, elements);
        let mut trajectories: Vec<Trajectory> = starts.iter().map(begin).collect();
        while let Some(call) = trajectories[0].next_call() {
            let index = |name: &str| {
                let index = denoiser.about().subnets.iter().position(|subnet| subnet.name == name);
                index.ok_or_else(|| Error::input("plan", format!("the model has no `{name}`")))
            };
            let subnet = index(call.subnet)?;
            let by = plan.guide_at(trajectories[0].step(), is_guided.then_some(recipe.guidance));
            let by = by.map(|(subnet, scale)| Ok::<_, Error>((index(subnet)?, scale))).transpose()?;
            let levels = vec![call.level; starts.len()];
            let x: Vec<f32> = trajectories.iter().flat_map(Trajectory::input).map(|&value| value as f32).collect();
            let rows = Rows { image, x: &x, beside: &[], levels: &levels, conditions: &conditions };
            let mut denoised = denoiser.denoise(subnet, &rows)?;
            if let Some((subnet, scale)) = by {
                let conditions = if is_guided { &nothing } else { &conditions };
                let led_from = denoiser.denoise(subnet, &Rows { conditions, ..rows })?;
                denoised = guide(&denoised, &led_from, scale);
            }
            for (trajectory, denoised) in trajectories.iter_mut().zip(denoised.chunks_exact(elements)) {
                trajectory.advance(denoised);
            }
        }
        for trajectory in &trajectories {
            images.push(denoiser.picture(decoder, trajectory.image())?);
        }
    }
    Ok(images)
}

/// Images in [-1, 1] as the bytes that are served, one after the other.
pub fn bytes(images: &[Vec<f64>]) -> Vec<u8> {
    images.iter().flatten().map(|&value| byte(value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::gaussian::Gaussian;

    #[test]
    fn every_class_has_two_images_or_none() {
        let classes = |images, classes| starts(images, classes).iter().map(|start| start.class).collect::<Vec<_>>();
        assert_eq!(classes(3, 0), [None; 3]);
        assert_eq!(classes(5, 2), [0, 1, 0, 1, 0].map(Some));
        assert_eq!(classes(5, 10), [0, 5, 0, 5, 0].map(Some));
        assert_eq!(classes(2, 10), [0, 0].map(Some));
        let seeds = starts(4, 2).iter().map(|start| start.seed).collect::<Vec<_>>();
        assert_eq!(seeds, [0, 1, 2, 3]);
    }

    #[test]
    fn the_first_of_many_starts_in_turn_are_those_of_few() {
        let (few, many) = (starts_in_turn(7, 5, 3), starts_in_turn(7, 12, 3));
        assert_eq!(many[..5], few);
        let told = few.iter().map(|start| (start.seed, start.class)).collect::<Vec<_>>();
        assert_eq!(told, [(7, Some(0)), (8, Some(1)), (9, Some(2)), (10, Some(0)), (11, Some(1))]);
        assert_eq!(starts_in_turn(0, 2, 0).iter().map(|start| start.class).collect::<Vec<_>>(), [None; 2]);
    }

    #[test]
    fn guidance_moves_images_away_from_those_of_no_class() {
        let (mut denoiser, _) = Gaussian::conditional();
        let starts = starts(4, 2);
        let mut of = |guidance| {
            let recipe = Recipe { plan: "euler-4@full".parse().unwrap(), guidance };
            draw(&mut *denoiser, &starts, &recipe).unwrap()
        };
        let [plain, guided, none] = [1.0, 2.0, 0.0].map(&mut of);
        for ((plain, guided), none) in plain.iter().zip(&guided).zip(&none) {
            let away =
                |image: &[f64]| plain.iter().zip(none).zip(image).map(|((p, n), i)| (p - n) * (i - p)).sum::<f64>();
            assert!(away(guided) > 0.0 && away(none) < 0.0);
        }
    }
}

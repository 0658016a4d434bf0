//! Images in slots against [`Trajectory`]s of their own.

use super::*;
use crate::diffusion::{Course, Plan, Trajectory};
use crate::engine::gaussian::{Fault, Gate, Gaussian};
use std::sync::Arc;

/// Index of the widest subnet.
const FULL: usize = 2;

fn sampler() -> (HostSampler, Arc<Gate>) {
    let (denoiser, gate) = Gaussian::conditional();
    (HostSampler::new(denoiser), gate)
}

/// An image in a sampler, as the engine keeps it.
struct Drawing {
    course: Course,
    slot: Slot,
    class: Option<usize>,
    guidance: Option<f64>,
}

impl Drawing {
    fn begin(sampler: &mut HostSampler, plan: &str, seed: u64, class: Option<usize>, guidance: Option<f64>) -> Self {
        let course = Course::new(Arc::new(plan.parse().unwrap()), Gaussian::PROCESS);
        let slot = sampler.begin(&Begin::new(NoiseKey { seed, image: 0 }, &course)).unwrap();
        Self { course, slot, class, guidance }
    }

    fn next(&mut self) -> Move {
        let level = self.course.next_call().unwrap().level;
        let update = self.course.advance();
        let next = self.course.next_call().map(|call| call.level);
        let Self { slot, class, guidance, .. } = *self;
        let guide = guidance.map(|scale| Guide { scale, from: Condition::None, subnet: FULL });
        Move { slot, level, condition: class.into(), guide, update, next, watched: true }
    }
}

/// The same image without a sampler: its values, and the last denoised image.
fn alone(plan: &str, seed: u64, class: Option<usize>, guidance: Option<f64>) -> (Vec<f64>, Vec<f32>) {
    let (mut denoiser, _) = Gaussian::conditional();
    let plan: Arc<Plan> = Arc::new(plan.parse().unwrap());
    let mut trajectory = Trajectory::new(plan, Gaussian::PROCESS, seed, 0, denoiser.about().state().elements());
    let mut last = Vec::new();
    while let Some(call) = trajectory.next_call() {
        let x: Vec<f32> = trajectory.input().iter().map(|&value| value as f32).collect();
        let sigma = call.level.sigma;
        let mut of = |class| denoiser.denoise_classes(FULL, &x, &[sigma], &[class]).unwrap();
        last = match guidance {
            Some(scale) => guide(&of(class), &of(None), scale),
            None => of(class),
        };
        trajectory.advance(&last);
    }
    (trajectory.image().to_vec(), last)
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn images_in_slots_have_the_bits_of_images_alone() {
    let (mut sampler, _) = sampler();
    let wanted = [
        ("heun-5@full~churn=2", 1, Some(1), None),
        ("dpmpp2m-6@full", 2, Some(0), Some(2.5)),
        ("euler-3@full", 3, None, None),
        ("heun-3@full", 4, Some(1), Some(0.5)),
    ];
    let mut drawings =
        wanted.map(|(plan, seed, class, guidance)| Drawing::begin(&mut sampler, plan, seed, class, guidance));
    // They leave at different steps, so rows and slots do not agree.
    while drawings.iter().any(|drawing| !drawing.course.is_finished()) {
        let open = drawings.iter_mut().rev().filter(|drawing| !drawing.course.is_finished());
        let moves: Vec<Move> = open.map(Drawing::next).collect();
        sampler.step(FULL, &moves).unwrap();
    }
    for (drawing, (plan, seed, class, guidance)) in drawings.iter().zip(wanted) {
        let (image, last) = alone(plan, seed, class, guidance);
        assert_eq!(bits(sampler.held(drawing.slot).state.x()), bits(&image), "{plan}");
        let pixels: Vec<u8> = image.iter().map(|&value| byte(value)).collect();
        assert_eq!(sampler.pixels(drawing.slot, 0).unwrap(), pixels, "{plan}");
        assert_eq!(sampler.held(drawing.slot).estimate.as_ref(), Some(&last), "{plan}");
        let estimate: Vec<u8> = last.iter().map(|&value| byte(f64::from(value))).collect();
        assert_eq!(sampler.estimate(drawing.slot).unwrap(), estimate, "{plan}");
    }
}

#[test]
fn guidance_adds_a_row_without_the_class() {
    let (mut sampler, gate) = sampler();
    let moves =
        [None, Some(3.0)].map(|guidance| Drawing::begin(&mut sampler, "euler-2@full", 1, Some(1), guidance).next());
    sampler.step(FULL, &moves).unwrap();
    let call = &gate.calls()[0];
    assert_eq!((call.subnet, &call.class[..], &call.sigma[..]), (FULL, &[Some(1), Some(1), None][..], &[80.0; 3][..]));
}

#[test]
fn a_slot_that_ended_serves_again_and_keeps_nothing() {
    let (mut sampler, _) = sampler();
    let begin = |sampler: &mut HostSampler, seed| Drawing::begin(sampler, "dpmpp2m-2@full", seed, None, None);
    let (mut first, second) = (begin(&mut sampler, 1), begin(&mut sampler, 2));
    assert_ne!(first.slot, second.slot);
    sampler.step(FULL, &[first.next()]).unwrap();
    sampler.end(first.slot);
    let third = begin(&mut sampler, 3);
    assert_eq!(third.slot, first.slot);
    let fresh = State::new(12, third.course.begin(), NoiseKey { seed: 3, image: 0 });
    let Image { state, estimate, .. } = sampler.held(third.slot);
    assert_eq!((bits(state.x()), estimate.is_none()), (bits(fresh.x()), true));
    assert_eq!(sampler.images.len(), 2);
}

#[test]
fn a_step_that_fails_or_panics_leaves_the_other_images_as_they_were() {
    for fault in [Fault::Error, Fault::NotFinite, Fault::Panic] {
        let (mut sampler, gate) = sampler();
        let mut spared = Drawing::begin(&mut sampler, "heun-4@full", 1, Some(1), None);
        let mut hit = Drawing::begin(&mut sampler, "heun-4@full", 2, Some(1), None);
        sampler.step(FULL, &[spared.next(), hit.next()]).unwrap();
        gate.fail_next(fault);
        let moves = [hit.next()];
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sampler.step(FULL, &moves)));
        assert!(!matches!(outcome, Ok(Ok(()))));
        sampler.end(hit.slot);
        while !spared.course.is_finished() {
            sampler.step(FULL, &[spared.next()]).unwrap();
        }
        assert_eq!(bits(sampler.held(spared.slot).state.x()), bits(&alone("heun-4@full", 1, Some(1), None).0));
    }
}

/// Answers with a value less than it was asked for.
struct Short(Gaussian);

impl Denoiser for Short {
    fn about(&self) -> &About {
        self.0.about()
    }

    fn activation_bytes(&self) -> usize {
        self.0.activation_bytes()
    }

    fn denoise(&mut self, _: usize, rows: &Rows) -> Result<Vec<f32>> {
        Ok(vec![0.0; rows.x.len() - 1])
    }
}

#[test]
fn an_answer_of_another_size_is_a_fault() {
    let mut sampler = HostSampler::new(Box::new(Short(*Gaussian::conditional().0)));
    let mut drawing = Drawing::begin(&mut sampler, "euler-2@full", 1, None, None);
    let error = sampler.step(FULL, &[drawing.next()]).unwrap_err();
    assert_eq!(error.to_string(), "it returned 11 values for 12");
}

#[test]
fn what_is_known_is_put_back_after_every_step_at_the_level_of_the_next() {
    let (mut sampler, _) = sampler();
    let picture: Arc<[f32]> = (0..12).map(|at| at as f32 / 12.0).collect();
    let known = Known { picture: picture.clone(), mask: (0..12).map(|at| at % 2 == 0).collect() };
    let source = Source { start: None, known: Some(known), beside: None };
    let key = NoiseKey { seed: 5, image: 2 };
    let mut noise = [0.0; 12];
    key.draw(NoiseKey::INITIAL).fill_normals(&mut noise);
    for plan in ["heun-3@full~churn=1", "dpmpp2m-4@full~eta=1", "euler-2@full"] {
        let course = Course::new(Arc::new(plan.parse().unwrap()), Gaussian::PROCESS);
        let slot = sampler.begin(&Begin { source: &source, ..Begin::new(key, &course) }).unwrap();
        let mut known = Drawing { course, slot, class: None, guidance: None };
        while !known.course.is_finished() {
            let step = known.next();
            sampler.step(FULL, std::slice::from_ref(&step)).unwrap();
            let sigma = step.next.map_or(0.0, |level| level.sigma);
            let x = sampler.held(slot).state.x().to_vec();
            for at in (1..12).step_by(2) {
                assert_eq!(x[at], f64::from(picture[at]) + sigma * f64::from(noise[at]), "{plan}");
            }
        }
        let bytes = sampler.pixels(slot, 0).unwrap();
        assert!((1..12).step_by(2).all(|at| bytes[at] == byte(f64::from(picture[at]))), "{plan}");
        sampler.end(slot);
    }
}

#[test]
fn an_image_starts_from_a_picture_at_its_noise_level() {
    let (mut sampler, _) = sampler();
    let picture: Arc<[f32]> = (0..12).map(|at| at as f32 / 12.0 - 0.5).collect();
    let course = Course::new(Arc::new("euler-8@full~strength=0.5".parse().unwrap()), Gaussian::PROCESS);
    let level = course.next_call().unwrap().level.sigma;
    assert!(level < 10.0, "of 80");
    let source = Source { start: Some(picture.clone()), ..Source::default() };
    let key = NoiseKey { seed: 1, image: 0 };
    let slot = sampler.begin(&Begin { source: &source, ..Begin::new(key, &course) }).unwrap();
    let mut noise = [0.0; 12];
    key.draw(NoiseKey::INITIAL).fill_normals(&mut noise);
    for (at, x) in sampler.held(slot).state.x().iter().enumerate() {
        assert!((x - (f64::from(picture[at]) + level * f64::from(noise[at]))).abs() < 1e-12);
    }
}

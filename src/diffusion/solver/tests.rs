//! Solvers against data N(0, s^2), whose denoiser and trajectories are known in closed form.

use super::*;
use crate::diffusion::SigmaRange;
use crate::diffusion::schedule::sigmas_to_zero;
use proptest::prelude::*;

/// s of the data.
const SPREAD: f64 = 0.5;
const RANGE: SigmaRange = SigmaRange { min: 0.002, max: 80.0 };

/// The process of those levels.
fn of(range: SigmaRange) -> Process {
    Process::edm(range)
}

fn plan(text: &str) -> Arc<Plan> {
    Arc::new(text.parse().unwrap())
}

/// `D(x; sigma) = x s^2 / (s^2 + sigma^2)`.
fn denoise(x: &[f64], sigma: f64) -> Vec<f32> {
    let variance = SPREAD * SPREAD;
    x.iter().map(|x| (x * variance / (variance + sigma * sigma)) as f32).collect()
}

fn advance(trajectory: &mut Trajectory) {
    let sigma = trajectory.next_call().unwrap().level.sigma;
    let denoised = denoise(trajectory.input(), sigma);
    trajectory.advance(&denoised);
}

fn run(mut trajectory: Trajectory) -> Vec<f64> {
    while !trajectory.is_finished() {
        advance(&mut trajectory);
    }
    trajectory.image().to_vec()
}

/// The error relative to `x(sigma) = x(max) sqrt((s^2 + sigma^2) / (s^2 + max^2))` at `min`, before the step to 0.
fn error(text: &str, range: SigmaRange) -> f64 {
    let mut trajectory = Trajectory::from_noise(plan(text), of(range), NoiseKey { seed: 0, image: 0 }, &[1.0]);
    while trajectory.step() + 1 < trajectory.plan().steps {
        advance(&mut trajectory);
    }
    let variance = |sigma: f64| SPREAD * SPREAD + sigma * sigma;
    let exact = range.max * (variance(range.min) / variance(range.max)).sqrt();
    (trajectory.image()[0] / exact - 1.0).abs()
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn each_solver_converges_to_the_closed_form_with_its_order() {
    for spacing in ["", "~logsnr"] {
        for (solver, ratio) in [("euler", 2.0), ("heun", 4.0), ("dpmpp2m", 4.0)] {
            // n + 1 steps: n down to min, and the one to 0.
            let errors = [32, 64, 128].map(|n| error(&format!("{solver}-{}@full{spacing}", n + 1), RANGE));
            let found = errors[1] / errors[2];
            assert!((found / ratio - 1.0).abs() < 0.05, "{solver}{spacing}: {errors:?}");
            assert!(errors[2] < if ratio == 2.0 { 0.03 } else { 0.001 }, "{solver}{spacing}: {errors:?}");
        }
    }
}

#[test]
fn the_step_to_zero_is_the_denoised_image() {
    for text in ["heun-1@full", "euler-1@full", "dpmpp2m-1@full"] {
        let image = run(Trajectory::from_noise(plan(text), of(RANGE), NoiseKey { seed: 0, image: 0 }, &[1.0, -0.5]));
        let expected = denoise(&[80.0, -40.0], 80.0);
        for (found, expected) in image.iter().zip(expected) {
            assert_eq!(*found, f64::from(expected), "{text}");
        }
    }
}

/// The expected values come from a Python transcription of NVlabs' `edm_sampler` and k-diffusion's `sample_dpmpp_2m`.
#[test]
fn eight_steps_give_what_the_published_samplers_give() {
    for (text, expected) in [
        ("heun-8@full", [0.696993887424469, -0.17424847185611725]),
        ("euler-8@full", [0.3327890932559967, -0.08319727331399918]),
        ("dpmpp2m-8@full", [0.575294554233551, -0.14382363855838776]),
    ] {
        let image = run(Trajectory::from_noise(plan(text), of(RANGE), NoiseKey { seed: 0, image: 0 }, &[1.0, -0.25]));
        for (found, expected) in image.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{text}: {found} is not {expected}");
        }
    }
}

#[test]
fn interleaved_trajectories_have_the_bits_of_separate_ones() {
    let start = |text, image| Trajectory::new(plan(text), of(RANGE), 7, image, 12);
    for (left, right) in [
        ("heun-5@full~churn=2", "heun-9@full~churn=9"),
        ("dpmpp2m-6@full", "heun-4@full"),
        ("euler-3@full", "dpmpp2m-7@full"),
    ] {
        let (mut a, mut b) = (start(left, 0), start(right, 1));
        while !(a.is_finished() && b.is_finished()) {
            for trajectory in [&mut a, &mut b] {
                if trajectory.next_call().is_some() {
                    advance(trajectory);
                }
            }
        }
        assert_eq!(bits(a.image()), bits(&run(start(left, 0))));
        assert_eq!(bits(b.image()), bits(&run(start(right, 1))));
    }
}

#[test]
fn an_image_starts_from_its_own_noise_at_the_first_level() {
    let inputs = [0, 1].map(|image| Trajectory::new(plan("euler-4@full"), of(RANGE), 7, image, 12).input().to_vec());
    for (image, input) in (0..).zip(&inputs) {
        let noise = NoiseKey { seed: 7, image }.draw(NoiseKey::INITIAL);
        let expected: Vec<f64> = (0..12).map(|element| f64::from(noise.normal(element) as f32) * 80.0).collect();
        assert_eq!(*input, expected);
    }
    assert_ne!(inputs[0], inputs[1]);
    // A larger image begins with the elements of a smaller one: the noise is addressed, not consumed.
    let larger = Trajectory::new(plan("euler-4@full"), of(RANGE), 7, 0, 13);
    assert_eq!(larger.input()[..12], inputs[0]);
}

#[test]
fn churn_raises_the_level_by_the_noise_of_its_own_draw() {
    let key = NoiseKey { seed: 7, image: 2 };
    // The share of a step is 1 / 4.
    let mut trajectory = Trajectory::new(plan("heun-4@full~churn=1"), of(RANGE), 7, 2, 8);
    assert_eq!(trajectory.next_call().unwrap().level.sigma, 100.0);
    let [initial, first] = [0, 1].map(|draw| key.draw(draw));
    for (element, x) in (0..).zip(trajectory.input()) {
        // 100^2 - 80^2 = 60^2
        let expected =
            80.0 * f64::from(initial.normal(element) as f32) + 60.0 * f64::from(first.normal(element) as f32);
        assert!((x - expected).abs() < 1e-12);
    }
    advance(&mut trajectory);
    let level = sigmas_to_zero(Spacing::Karras, 4, RANGE)[1];
    assert_eq!(trajectory.next_call().unwrap().level.sigma, level);
    advance(&mut trajectory);
    assert_eq!(trajectory.next_call().unwrap().level.sigma, level * 1.25);
}

#[test]
fn a_share_of_churn_saturates_at_doubled_variance() {
    let trajectory = Trajectory::new(plan("heun-4@full~churn=1000"), of(RANGE), 7, 0, 1);
    assert!((trajectory.next_call().unwrap().level.sigma / 80.0 - SQRT_2).abs() < 1e-15);
}

#[test]
fn churn_is_reproducible_and_keeps_the_distribution_of_the_data() {
    let image = |text| run(Trajectory::new(plan(text), of(RANGE), 7, 0, 20_000));
    let churned = image("heun-64@full~churn=20");
    assert_eq!(bits(&churned), bits(&image("heun-64@full~churn=20")));
    assert_ne!(churned, image("heun-64@full"));
    let spread = (churned.iter().map(|x| x * x).sum::<f64>() / churned.len() as f64).sqrt();
    // The standard error is 0.5 %; 64 steps are 0.4 % off without churn.
    assert!((spread / SPREAD - 1.0).abs() < 0.015, "{spread}");
}

#[test]
fn both_halves_of_a_heun_step_run_on_its_subnet() {
    let mut trajectory = Trajectory::new(plan("heun-3@0.250*2,full*1"), of(RANGE), 0, 0, 1);
    let mut calls = Vec::new();
    while let Some(Call { level, subnet }) = trajectory.next_call() {
        calls.push((trajectory.step(), level.sigma, subnet.to_owned()));
        advance(&mut trajectory);
    }
    let [high, middle, low, _] = sigmas_to_zero(Spacing::Karras, 3, RANGE)[..] else { panic!() };
    let expected =
        [(0, high, "0.250"), (0, middle, "0.250"), (1, middle, "0.250"), (1, low, "0.250"), (2, low, "full")];
    assert_eq!(calls, expected.map(|(step, sigma, subnet)| (step, sigma, subnet.to_owned())));
}

#[test]
fn guidance_extrapolates_from_the_unconditional_image() {
    let (conditional, unconditional) = ([1.0, -2.0, 0.1], [0.5, 1.0, 0.3]);
    assert_eq!(guide(&conditional, &unconditional, 3.0), [2.0, -8.0, -0.3]);
    assert_eq!(guide(&conditional, &unconditional, 1.0), conditional);
    assert_eq!(guide(&conditional, &unconditional, 0.0), unconditional);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bounded_denoiser_makes_a_number_that_is_not_finite(
        solver in prop::sample::select(vec!["heun", "euler", "dpmpp2m"]),
        steps in prop_oneof![1..=20usize, Just(1000)],
        spacing in prop::sample::select(vec!["", "~logsnr"]),
        churn in prop::sample::select(vec!["", "~churn=0.5", "~churn=1000"]),
        (min, ratio) in (1e-4..1.0f64, 2.0..1e6f64),
        seed in any::<u64>(),
    ) {
        let churn = if solver == "heun" { churn } else { "" };
        let plan = plan(&format!("{solver}-{steps}@full{spacing}{churn}"));
        let range = SigmaRange::new(min, min * ratio).unwrap();
        let mut trajectory = Trajectory::new(plan.clone(), of(range), seed, 0, 6);
        let mut calls = 0;
        while let Some(call) = trajectory.next_call() {
            prop_assert!(call.level.sigma > 0.0);
            // Worse than any network: it ignores its input.
            let denoised: Vec<f32> = (0..6).map(|i| if (i + calls) % 2 == 0 { 1.0 } else { -1.0 }).collect();
            trajectory.advance(&denoised);
            prop_assert!(trajectory.image().iter().all(|x| x.is_finite()));
            calls += 1;
        }
        prop_assert_eq!(calls, plan.evaluations());
    }
}

#[test]
fn a_plan_that_changes_while_it_runs_draws_what_its_text_draws() {
    let narrow = [crate::diffusion::WidthRun { subnet: "0.250".parse().unwrap(), steps: 3 }];
    for text in ["euler-9@full", "heun-9@full", "dpmpp2m-9@full", "dpmpp2m-9@full~logsnr"] {
        let start = |plan: Arc<Plan>| Trajectory::new(plan, of(RANGE), 7, 1, 4);
        let mut trajectory = start(plan(text));
        while trajectory.step() < 4 {
            advance(&mut trajectory);
        }
        let changed = Arc::new(trajectory.plan().continued(4, &narrow).unwrap());
        trajectory.replan(changed.clone());
        let replayed = run(start(plan(&changed.to_string())));
        assert_eq!(bits(&run(trajectory)), bits(&replayed), "{changed}");
        assert_ne!(bits(&replayed), bits(&run(start(plan(text)))));
    }
}

#[test]
#[should_panic(expected = "between steps")]
fn a_plan_does_not_change_in_the_middle_of_a_heun_step() {
    let mut trajectory = Trajectory::new(plan("heun-9@full"), of(RANGE), 7, 1, 4);
    advance(&mut trajectory);
    trajectory.replan(plan("heun-9@full"));
}

/// The textbook forms of the solvers, element by element, from Karras et al. 2022 (algorithms 1 and 2) and Lu et al. 2022
/// (DPM-Solver++, algorithm 2).
fn textbook(text: &str, key: NoiseKey, elements: usize) -> Vec<f64> {
    let plan = plan(text);
    let t: Vec<f64> = plan.levels(&of(RANGE)).iter().map(|level| level.sigma).collect();
    let normal = |draw: u32, element: usize| f64::from(key.draw(draw).normal(element as u64) as f32);
    let d = |x: f64, sigma: f64| f64::from(denoise(&[x], sigma)[0]);
    let image = |element: usize| {
        let mut x = t[0] * normal(0, element);
        let mut before: Option<(f64, f64)> = None;
        for i in 0..plan.steps {
            match plan.solver {
                Solver::DpmPp2m => {
                    let (lambda, current) = (|sigma: f64| -sigma.ln(), d(x, t[i]));
                    let h = lambda(t[i + 1]) - lambda(t[i]);
                    let target = match before {
                        Some((level, old)) if t[i + 1] > 0.0 => {
                            let r = (lambda(t[i]) - lambda(level)) / h;
                            (1.0 + 1.0 / (2.0 * r)) * current - 1.0 / (2.0 * r) * old
                        }
                        _ => current,
                    };
                    let noise = t[i + 1] * (1.0 - (-2.0 * plan.eta * h).exp()).sqrt();
                    let drift = if t[i + 1] > 0.0 { t[i + 1] / t[i] * (-plan.eta * h).exp() * x } else { 0.0 };
                    x = drift + (1.0 - (-(1.0 + plan.eta) * h).exp()) * target;
                    if plan.eta > 0.0 {
                        x += noise * normal(i as u32 + 1, element);
                    }
                    before = Some((t[i], current));
                }
                Solver::Ddim | Solver::Pndm => unreachable!("they are of processes in steps"),
                Solver::Euler | Solver::Heun => {
                    let raised = t[i] * (1.0 + (plan.churn / plan.steps as f64).min(SQRT_2 - 1.0));
                    x += (raised * raised - t[i] * t[i]).sqrt() * normal(i as u32 + 1, element);
                    let (h, slope) = (t[i + 1] - raised, (x - d(x, raised)) / raised);
                    let end = x + h * slope;
                    let corrected = || x + h * (0.5 * slope + 0.5 * (end - d(end, t[i + 1])) / t[i + 1]);
                    x = if plan.solver == Solver::Heun && t[i + 1] > 0.0 { corrected() } else { end };
                }
            }
        }
        x
    };
    (0..elements).map(image).collect()
}

#[test]
fn the_linear_form_of_a_step_is_that_of_the_papers() {
    for text in [
        "euler-7@full",
        "heun-7@full",
        "heun-5@full~churn=2",
        "dpmpp2m-7@full",
        "dpmpp2m-9@full~logsnr",
        "dpmpp2m-6@full~eta=1",
        "dpmpp2m-6@full~last=0.1~eta=0.25",
        "euler-5@full~last=0.05",
    ] {
        let (found, expected) =
            (run(Trajectory::new(plan(text), of(RANGE), 3, 1, 6)), textbook(text, NoiseKey { seed: 3, image: 1 }, 6));
        for (found, expected) in found.iter().zip(expected) {
            // The denoiser rounds to f32, so what differs in f64 may differ by a step of that.
            assert!((found - expected).abs() < 1e-6 * expected.abs(), "{text}: {found} is not {expected}");
        }
    }
}

#[test]
fn the_weights_of_a_step_are_those_of_its_levels() {
    let levels = sigmas_to_zero(Spacing::Karras, 3, RANGE);
    let close = |update: Update, expected: [f64; 5]| {
        let Update { a_x, a_d, a_m, b_x, b_d, .. } = update;
        for (found, expected) in [a_x, a_d, a_m, b_x, b_d].into_iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-14 * expected.abs().max(1.0), "{update:?} is not {expected}");
        }
    };
    let keep = levels[1] / levels[0];
    close(Course::new(plan("euler-3@full"), of(RANGE)).advance(), [keep, 1.0 - keep, 0.0, 0.0, 0.0]);
    let mut heun = Course::new(plan("heun-3@full"), of(RANGE));
    close(heun.advance(), [keep, 1.0 - keep, 0.0, (1.0 + keep) / 2.0, (1.0 - keep) / 2.0]);
    let slope = (levels[1] - levels[0]) / (2.0 * levels[1]);
    close(heun.advance(), [slope, -slope, 1.0, 0.0, 0.0]);
    let mut multistep = Course::new(plan("dpmpp2m-3@full"), of(RANGE));
    close(multistep.advance(), [keep, 1.0 - keep, 0.0, 0.0, 1.0]);
    let (keep, r) = (levels[2] / levels[1], 0.5 * (levels[1] / levels[2]).ln() / (levels[0] / levels[1]).ln());
    close(multistep.advance(), [keep, (1.0 - keep) * (1.0 + r), -(1.0 - keep) * r, 0.0, 1.0]);
    close(multistep.advance(), [0.0, 1.0, 0.0, 0.0, 1.0]);
}

//! How far inference in f32, with its fused layers and Winograd's convolution, lies from the exact network.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/random.rs"]
mod random;
#[path = "support/reference.rs"]
mod reference;

use accordion::diffusion::Trajectory;
use accordion::diffusion::preconditioning::Preconditioning;
use accordion::nets::sliced::Sliced;
use accordion::nets::{Denoiser, HostRunner, Model, Threads};
use accordion::ops::Tape;
use accordion::supernet::Order;
use compare::relative_error;
use golden::{NAMES, golden, images, output};
use proptest::prelude::*;
use random::shapes;
use rayon::prelude::*;
use reference::Reference;
use std::path::Path;
use std::sync::Arc;

/// What inference may differ from the reference by, as a share of a sample's largest value.
const TOLERANCE: f64 = 1e-4;

/// The arguments of one call of a denoiser.
struct Batch {
    x: Vec<f32>,
    sigma: Vec<f64>,
    classes: Vec<Option<usize>>,
}

impl Batch {
    /// What the reference makes of each sample.
    fn exact(&self, model: &Model, subnet: usize) -> Vec<Vec<f64>> {
        let (elements, reference) = (model.image().elements(), Reference::new(model, subnet));
        let samples = self.x.par_chunks_exact(elements).zip(&self.sigma).zip(&self.classes);
        samples.map(|((x, &sigma), &class)| reference.denoise(x, sigma, class)).collect()
    }

    /// The runner's error on each sample, as a share of the sample's largest value.
    fn errors(&self, model: &Model, runner: &mut HostRunner, subnet: usize, exact: &[Vec<f64>]) -> Vec<f64> {
        let got = runner.denoise_classes(subnet, &self.x, &self.sigma, &self.classes).unwrap();
        got.chunks_exact(model.image().elements()).zip(exact).map(|(got, want)| relative_error(got, want)).collect()
    }
}

fn worst(errors: &[f64]) -> f64 {
    errors.iter().copied().fold(0.0, f64::max)
}

#[test]
fn the_reference_computes_what_pytorch_computed_and_inference_what_the_reference_does() {
    for name in NAMES {
        let golden = golden(name);
        let [.., x] = golden.batch();
        let batch = Batch { x, sigma: golden.sigma(), classes: golden.classes() };
        let (model, expected) = golden.allocated();
        let mut runner = HostRunner::new(&model, Threads::ALL).unwrap();
        for (subnet, row) in model.subnets().iter().enumerate() {
            let exact = batch.exact(&model, subnet);
            let suffix = if row.name == "full" { "full".to_owned() } else { format!("subnet_{}", row.name) };
            let reference: Vec<f32> = exact.concat().into_iter().map(|value| value as f32).collect();
            let (what, reference) = output(&expected, &batch.x, &batch.sigma, &reference);
            let pytorch = relative_error(&images(&expected, &format!("{what}_{suffix}")), &reference);
            let errors = batch.errors(&model, &mut runner, subnet, &exact);
            println!("{name} {}: PyTorch {pytorch:.1e}, inference {:.1e}", row.name, worst(&errors));
            // PyTorch computes in float32.
            assert!(pytorch < 1e-5, "{name} {}: the reference is {pytorch:.1e} from PyTorch", row.name);
            assert!(worst(&errors) < TOLERANCE, "{name} {}: {errors:?}", row.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn inference_is_near_the_reference_for_networks_of_every_kind(shape in shapes()) {
        for order in [Order::Global, Order::WithinGroup] {
            let model = shape.allocated(order);
            // Both at once make angles of ten thousands of radians, which f32 does not hold. No published network has both.
            let is_fourier = model.network.spec().params.iter().any(|param| param.name == "map_noise.freqs");
            prop_assume!(!is_fourier || model.card.preconditioning != Preconditioning::Vp);
            let (x, sigma, classes) = shape.batch(&model);
            let batch = Batch { x, sigma, classes };
            let mut runner = HostRunner::new(&model, Threads::ALL).unwrap();
            for subnet in 0..model.subnets().len() {
                let exact = batch.exact(&model, subnet);
                let errors = batch.errors(&model, &mut runner, subnet, &exact);
                prop_assert!(worst(&errors) < TOLERANCE, "{:?}, subnet {}: {:?}", order, subnet, errors);
            }
        }
    }
}

fn shipped() -> Model {
    Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/fashion-mnist")).unwrap()
}

/// Draws an image of each seed and class with one plan, all in step; `denoise` is given the subnet and the batch.
fn draw(
    model: &Model,
    plan: &str,
    jobs: &[(u64, Option<usize>)],
    mut denoise: impl FnMut(usize, &Batch) -> Vec<f32>,
) -> Vec<f64> {
    let (plan, elements) = (Arc::new(plan.parse().unwrap()), model.image().elements());
    let start = |&(seed, _): &(u64, _)| Trajectory::new(Arc::clone(&plan), model.card.process(), seed, 0, elements);
    let mut trajectories: Vec<Trajectory> = jobs.iter().map(start).collect();
    while let Some(call) = trajectories[0].next_call() {
        let subnet = model.subnet(call.subnet).unwrap();
        let sigma = vec![call.level.sigma; jobs.len()];
        let x = trajectories.iter().flat_map(Trajectory::input).map(|&x| x as f32).collect();
        let denoised = denoise(subnet, &Batch { x, sigma, classes: jobs.iter().map(|job| job.1).collect() });
        let images = denoised.chunks_exact(elements);
        trajectories.iter_mut().zip(images).for_each(|(trajectory, denoised)| trajectory.advance(denoised));
    }
    trajectories.iter().flat_map(Trajectory::image).copied().collect()
}

#[test]
fn the_shipped_model_is_near_the_reference_all_along_its_trajectories() {
    let model = shipped();
    let mut runner = HostRunner::new(&model, Threads::ALL).unwrap();
    let jobs = [(1, Some(0)), (2, Some(5)), (3, None)];
    for name in ["0.250", "0.500", "full"] {
        let (mut calls, mut errors) = (0, Vec::new());
        draw(&model, &format!("heun-18@{name}"), &jobs, |subnet, batch| {
            // Every other call begins a step; the one between is at the level of the next step's.
            if calls % 2 == 0 {
                let exact = batch.exact(&model, subnet);
                let error = worst(&batch.errors(&model, &mut runner, subnet, &exact));
                errors.push((error, batch.sigma[0]));
            }
            calls += 1;
            runner.denoise_classes(subnet, &batch.x, &batch.sigma, &batch.classes).unwrap()
        });
        assert_eq!(errors.len(), 18, "every level of the schedule");
        let (error, sigma) = errors.iter().copied().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        println!("{name}: at most {error:.1e} of a sample's range, at sigma {sigma:.3}");
        assert!(error < TOLERANCE, "{name}: {errors:?}");
    }
}

#[test]
fn images_of_every_plan_are_those_of_the_direct_convolution() {
    let model = shipped();
    let spec = model.network.spec();
    let mut runner = HostRunner::new(&model, Threads::ALL).unwrap();
    let sliced = |subnet| Sliced::new(spec, &model.supernet, &model.widths(subnet)).unwrap();
    let sliced: Vec<Sliced> = (0..model.subnets().len()).map(sliced).collect();
    let jobs: Vec<_> = (0..10).map(|class| (class as u64, Some(class))).collect();
    let plans = [
        "dpmpp2m-8@0.250",
        "dpmpp2m-12@0.500",
        "heun-18@full",
        "dpmpp2m-12@0.250*8,full*4",
        "dpmpp2m-8@full*5,0.250*3~respace=5/12",
        "euler-18@0.500",
        "heun-18@0.750~churn=40",
    ];
    for plan in plans {
        let fused = draw(&model, plan, &jobs, |subnet, batch| {
            runner.denoise_classes(subnet, &batch.x, &batch.sigma, &batch.classes).unwrap()
        });
        let direct = draw(&model, plan, &jobs, |subnet, batch| {
            model
                .network
                .call(&Tape::off(), &sliced[subnet], &batch.x, &batch.sigma, &batch.classes, &[])
                .unwrap()
                .denoised
        });
        // A grey level is 2 / 255.
        let levels: Vec<f64> = fused.iter().zip(&direct).map(|(a, b)| 127.5 * (a - b).abs()).collect();
        let far = levels.iter().filter(|&&level| level.is_nan() || level >= 0.5).count();
        let share = far as f64 / levels.len() as f64;
        println!(
            "{plan}: {:.3} % of the pixels differ by half a grey level, at most by {:.4}",
            100.0 * share,
            worst(&levels)
        );
        assert!(share <= 0.001, "{plan}: {far} of {} pixels", levels.len());
    }
}

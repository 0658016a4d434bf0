//! What an independent PyTorch implementation computes for tiny random networks, held value by value.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/golden.rs"]
mod golden;

use accordion::diffusion::{NoiseKey, Plan, Trajectory};
use accordion::nets::{Denoiser, Model, Runner, Threads};
use accordion::supernet::{allocation, ranking};
use accordion::training::importance::{Samples, taylor};
use compare::relative_error;
use golden::{NAMES, RATIOS, golden, images};
use std::sync::Arc;

fn runner(model: &Model) -> Runner {
    Runner::new(model, Threads::ALL).unwrap()
}

#[test]
fn the_imported_network_denoises_as_the_reference_does() {
    for name in NAMES {
        let golden = golden(name);
        let got = runner(&golden.model).denoise(0, &golden.images("x"), &golden.sigma(), &golden.classes()).unwrap();
        let error = relative_error(&got, &golden.images("denoised_full"));
        println!("{name}: {error:.1e}");
        assert!(error < 1e-5, "{name}: {error:.1e} of the range");
    }
}

/// `|a - b| / |b|`.
fn relative_distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn importance_is_that_of_the_reference() {
    for name in NAMES {
        let golden = golden(name);
        let samples = Samples {
            x0: golden.images("x0"),
            noise: golden.images("noise"),
            sigma: golden.sigma(),
            classes: golden.classes(),
        };
        let network = &golden.model.network;
        let mut done = 0;
        let scores = taylor(network, &golden.model.supernet, &samples, |samples| done = samples).unwrap();
        assert_eq!(done, samples.len());
        let mut worst = 0f64;
        for (pipe, got) in network.spec().pipes.iter().zip(&scores) {
            let want = golden.importance(pipe);
            let error = relative_distance(got, &want);
            worst = worst.max(error);
            // Float32 sums in another order: 1e-6 each, but the terms of |sum w g| cancel to a hundredth of their size.
            assert!(error < 1e-3, "{name}, {}: {error:.1e}", pipe.name);
            // The same ranking, but for neighbours that are closer than the error.
            let near = 1e-3 * want.iter().copied().fold(0.0, f64::max);
            let order = &ranking::order_global(std::slice::from_ref(got))[0];
            let falls = order.windows(2).all(|pair| want[pair[0] as usize] > want[pair[1] as usize] - near);
            assert!(falls, "{name}, {}: ranks otherwise", pipe.name);
        }
        println!("{name}: {worst:.1e}");
    }
}

#[test]
fn subnets_denoise_as_the_reference_does() {
    for name in NAMES {
        let golden = golden(name);
        let (x, sigma, classes) = (golden.images("x"), golden.sigma(), golden.classes());
        let (model, expected) = golden.allocated();
        let mut runner = runner(&model);
        for ratio in ["full", "0.250", "0.5", "0.750"] {
            let subnet = model.subnet(ratio).unwrap();
            let got = runner.denoise(subnet, &x, &sigma, &classes).unwrap();
            let want = match ratio {
                "full" => "denoised_full".to_owned(),
                _ => format!("denoised_subnet_{}", model.subnets()[subnet].name),
            };
            let error = relative_error(&got, &images(&expected, &want));
            println!("{name} {ratio}: {error:.1e}");
            // As the full network: float32 sums in another order.
            assert!(error < 1e-5, "{name} {ratio}: {error:.1e} of the range");
        }
    }
}

#[test]
fn heun_trajectories_end_where_the_reference_does() {
    for name in NAMES {
        let golden = golden(name);
        let (noise, classes) = (golden.images("noise"), golden.classes());
        let (model, expected) = golden.allocated();
        let mut runner = runner(&model);
        let elements = model.image().elements();
        for (ratio, want) in [("full", "heun8_full"), ("0.500", "heun8_subnet_0.500")] {
            let plan: Arc<Plan> = Arc::new(format!("heun-8@{ratio}").parse().unwrap());
            let mut got = Vec::new();
            for (noise, &class) in noise.chunks_exact(elements).zip(&classes) {
                let key = NoiseKey { seed: 0, image: 0 };
                let mut trajectory = Trajectory::from_noise(plan.clone(), model.card.noise, key, noise);
                while let Some(call) = trajectory.next_call() {
                    let subnet = model.subnet(call.subnet).unwrap();
                    let sigma = call.sigma;
                    let input: Vec<f32> = trajectory.input().iter().map(|&x| x as f32).collect();
                    trajectory.advance(&runner.denoise(subnet, &input, &[sigma], &[class]).unwrap());
                }
                got.extend(trajectory.image().iter().map(|&x| x as f32));
            }
            let error = relative_error(&got, &images(&expected, want));
            println!("{name} {ratio}: {error:.1e}");
            // Fifteen calls, each of which meets the errors of those before it.
            assert!(error < 1e-4, "{name} {ratio}: {error:.1e} of the range");
        }
    }
}

#[test]
fn importance_allocates_the_channels_that_the_reference_allocates() {
    for name in NAMES {
        let golden = golden(name);
        let spec = golden.model.network.spec();
        let scores: Vec<_> = spec.pipes.iter().map(|pipe| golden.importance(pipe)).collect();
        for ratio in RATIOS {
            let widths = allocation::channels(spec, &scores, ratio, Default::default()).unwrap();
            assert_eq!(widths, golden.widths(ratio), "{name} {ratio}");
        }
    }
}

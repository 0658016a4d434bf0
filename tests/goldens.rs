//! What an independent PyTorch implementation computes for tiny random networks, held value by value.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/golden.rs"]
mod golden;

use accordion::diffusion::{Plan, Trajectory};
use accordion::nets::{Denoiser, HostRunner, Model, Threads};
use accordion::philox::NoiseKey;
use accordion::supernet::{allocation, ranking};
use accordion::training::importance::{Samples, taylor};
use compare::relative_error;
use golden::{NAMES, RATIOS, golden, images, output, sigma_at};
use std::sync::Arc;

fn runner(model: &Model) -> HostRunner {
    HostRunner::new(model, Threads::ALL).unwrap()
}

#[test]
fn the_imported_network_denoises_as_the_reference_does() {
    for name in NAMES {
        let golden = golden(name);
        let [.., x] = golden.batch();
        let got = runner(&golden.model).denoise_classes(0, &x, &golden.sigma(), &golden.classes()).unwrap();
        let (what, got) = output(&golden.expected, &x, &golden.sigma(), &got);
        let error = relative_error(&got, &golden.images(&format!("{what}_full")));
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
        let [x0, noise, _] = golden.batch();
        let samples = Samples { x0, noise, sigma: golden.sigma(), classes: golden.classes(), context: Vec::new() };
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
        let ([.., x], sigma, classes) = (golden.batch(), golden.sigma(), golden.classes());
        let (model, expected) = golden.allocated();
        let mut runner = runner(&model);
        for ratio in ["full", "0.250", "0.5", "0.750"] {
            let subnet = model.subnet(ratio).unwrap();
            let got = runner.denoise_classes(subnet, &x, &sigma, &classes).unwrap();
            let (what, got) = output(&expected, &x, &sigma, &got);
            let want = match ratio {
                "full" => format!("{what}_full"),
                _ => format!("{what}_subnet_{}", model.subnets()[subnet].name),
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
    for name in NAMES.into_iter().filter(|name| *name != "u_vit_uncond") {
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
                let mut trajectory = Trajectory::from_noise(plan.clone(), model.card.process(), key, noise);
                while let Some(call) = trajectory.next_call() {
                    let subnet = model.subnet(call.subnet).unwrap();
                    let sigma = call.level.sigma;
                    let input: Vec<f32> = trajectory.input().iter().map(|&x| x as f32).collect();
                    trajectory.advance(&runner.denoise_classes(subnet, &input, &[sigma], &[class]).unwrap());
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

/// DPM-Solver-3 in single steps, the last of order 1, with times equidistant in the log signal to noise ratio (Lu et al. 2022,
/// algorithm 2 and appendix D.2), of 10 calls down to time 1e-4: `noise_of` predicts the noise in the state of the VP process.
fn dpm_solver_fast10(start: &[f64], mut noise_of: impl FnMut(&[f64], f64) -> Vec<f64>) -> Vec<f64> {
    let log_alpha = |t: f64| -0.25 * 19.9 * t * t - 0.05 * t;
    let sigma = |t: f64| (-(2.0 * log_alpha(t)).exp_m1()).sqrt();
    let lambda = |t: f64| log_alpha(t) - sigma(t).ln();
    let time = |lambda: f64| {
        let log = (-2.0 * lambda).exp().ln_1p();
        2.0 * log / ((0.01 + 2.0 * 19.9 * log).sqrt() + 0.1)
    };
    let (first, last) = (lambda(1.0), lambda(1e-4));
    let times: Vec<f64> = (0..=4).map(|i| time(first + (last - first) * f64::from(i) / 4.0)).collect();
    let mut x = start.to_vec();
    for (step, pair) in times.windows(2).enumerate() {
        let (s, t) = (pair[0], pair[1]);
        let h = lambda(t) - lambda(s);
        // `alpha_u / alpha_s x - sigma_u sum_i c_i e_i`
        let moved = |u: f64, terms: &[(f64, &Vec<f64>)]| -> Vec<f64> {
            let keep = (log_alpha(u) - log_alpha(s)).exp();
            let sum = |i: usize| terms.iter().map(|(c, e)| c * e[i]).sum::<f64>();
            x.iter().enumerate().map(|(i, x)| keep * x - sigma(u) * sum(i)).collect()
        };
        let e0 = noise_of(&x, s);
        x = if step == 3 {
            moved(t, &[(h.exp_m1(), &e0)])
        } else {
            let (r1, r2) = (1.0 / 3.0, 2.0 / 3.0);
            let (s1, s2) = (time(lambda(s) + r1 * h), time(lambda(s) + r2 * h));
            let minus = |a: &[f64]| -> Vec<f64> { a.iter().zip(&e0).map(|(a, b)| a - b).collect() };
            let d1 = minus(&noise_of(&moved(s1, &[((r1 * h).exp_m1(), &e0)]), s1));
            let phi = (r2 * h).exp_m1();
            let d2 = minus(&noise_of(&moved(s2, &[(phi, &e0), (r2 / r1 * (phi / (r2 * h) - 1.0), &d1)]), s2));
            moved(t, &[(h.exp_m1(), &e0), ((h.exp_m1() / h - 1.0) / r2, &d2)])
        };
    }
    x
}

#[test]
fn dpm_solver_ends_where_the_reference_does() {
    let golden = golden("u_vit_uncond");
    let start: Vec<f64> = golden.images("eps").into_iter().map(f64::from).collect();
    let (model, expected) = golden.allocated();
    let mut runner = runner(&model);
    let elements = model.image().elements();
    for (ratio, want) in [("full", "dpm_solver_fast10_full"), ("0.500", "dpm_solver_fast10_subnet_0.500")] {
        let subnet = model.subnet(ratio).unwrap();
        let mut calls = 0;
        let mut got = Vec::new();
        for start in start.chunks_exact(elements) {
            got.extend(dpm_solver_fast10(start, |state, t| {
                calls += 1;
                let sigma = sigma_at(t);
                let x: Vec<f32> = state.iter().map(|x| (x * (1.0 + sigma * sigma).sqrt()) as f32).collect();
                let denoised = runner.denoise_classes(subnet, &x, &[sigma], &[None]).unwrap();
                x.iter().zip(denoised).map(|(x, d)| f64::from(x - d) / sigma).collect()
            }));
        }
        assert_eq!(calls, 3 * 10);
        let got: Vec<f32> = got.into_iter().map(|x| x as f32).collect();
        let error = relative_error(&got, &images(&expected, want));
        println!("{ratio}: {error:.1e}");
        assert!(error < 1e-4, "{ratio}: {error:.1e} of the range");
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

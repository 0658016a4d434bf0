//! What an independent PyTorch implementation computes for tiny random networks, held value by value.

use accordion::diffusion::preconditioning::Preconditioning;
use accordion::diffusion::{NoiseKey, Plan, Trajectory};
use accordion::nets::model::Card;
use accordion::nets::network::{Backbone, Network};
use accordion::nets::{Denoiser, Model, Runner, Threads, public};
use accordion::supernet::{Order, Pipe, Subnet, Supernet, Widths, allocation, ranking};
use accordion::training::importance::{Samples, taylor};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const RATIOS: [f64; 3] = [0.25, 0.5, 0.75];
const NAMES: [&str; 3] = ["song_unet_vp_cond", "song_unet_edm_uncond", "song_unet_ve_ncsnpp"];

fn fixture(file: String) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

struct Golden {
    json: serde_json::Value,
    model: Model,
    expected: HashMap<String, Tensor>,
}

fn golden(name: &str) -> Golden {
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture(format!("{name}.json"))).unwrap()).unwrap();
    let backbone = Backbone::SongUnet(serde_json::from_value(json["config"].clone()).unwrap());
    let preconditioning = match json["preconditioning"].as_str().unwrap() {
        "vp" => Preconditioning::Vp,
        "ve" => Preconditioning::Ve,
        _ => Preconditioning::Edm { sigma_data: 0.5 },
    };
    let network = Network::new(&backbone, preconditioning).unwrap();
    let params = public::read(network.spec(), &fixture(format!("{name}.weights.safetensors"))).unwrap();
    let supernet = Supernet::original(network.spec(), params);
    let card = Card::new(name.into(), backbone, preconditioning, vec![]);
    let expected =
        candle_core::safetensors::load(fixture(format!("{name}.expected.safetensors")), &Device::Cpu).unwrap();
    Golden { json, model: Model::unallocated(card, supernet).unwrap(), expected }
}

impl Golden {
    /// The reference's kept widths at a ratio.
    fn widths(&self, ratio: f64) -> Widths {
        let table = &self.json["allocation"][format!("{ratio:.3}")];
        let kept = |pipe: &Pipe| table[&pipe.block][format!("{}_keep", pipe.kind.as_str())].as_u64().unwrap() as usize;
        Widths(self.model.network.spec().pipes.iter().map(kept).collect())
    }

    /// The model in the reference's ranking, with its subnets.
    fn allocated(self) -> (Model, HashMap<String, Tensor>) {
        let spec = self.model.network.spec();
        let scores: Vec<_> = spec.pipes.iter().map(|pipe| self.importance(pipe)).collect();
        let rows = RATIOS.iter().map(|&ratio| Subnet::new(spec, ratio, &self.widths(ratio))).collect();
        let model = self.model.ranked(&scores, Order::Global).unwrap().with_subnets("channels", rows).unwrap();
        (model, self.expected)
    }

    /// A tensor of images, channels last.
    fn images(&self, name: &str) -> Vec<f32> {
        images(&self.expected, name)
    }

    /// The reference's scores of a pipe.
    fn importance(&self, pipe: &Pipe) -> Vec<f64> {
        let scores = self.expected[&ranking::tensor_name(pipe)].to_vec1::<f32>().unwrap();
        scores.into_iter().map(f64::from).collect()
    }

    fn sigma(&self) -> Vec<f64> {
        self.expected["sigma"].to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
    }

    fn classes(&self) -> Vec<Option<usize>> {
        match self.expected.get("class_labels") {
            None => vec![None; self.sigma().len()],
            Some(labels) => {
                let rows = labels.to_vec2::<f32>().unwrap();
                rows.iter().map(|row| row.iter().position(|&value| value == 1.0)).collect()
            }
        }
    }
}

fn runner(model: &Model) -> Runner {
    Runner::new(model, Threads::ALL).unwrap()
}

/// A tensor of images, channels last.
fn images(expected: &HashMap<String, Tensor>, name: &str) -> Vec<f32> {
    let images = expected[name].permute((0, 2, 3, 1)).unwrap().to_dtype(DType::F32).unwrap();
    images.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest error as a share of the largest wanted magnitude.
fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let range = want.iter().fold(0f64, |max, value| max.max(value.abs() as f64));
    got.iter().zip(want).map(|(g, w)| (g - w).abs() as f64 / range).fold(0.0, f64::max)
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
        let labels = golden.expected.get("class_labels");
        let samples = Samples {
            x0: golden.images("x0"),
            noise: golden.images("noise"),
            sigma: golden.sigma(),
            labels: labels.map_or(vec![], |labels| labels.flatten_all().unwrap().to_vec1().unwrap()),
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

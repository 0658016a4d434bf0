//! What an independent PyTorch implementation computes for tiny random networks, held value by value.

use accordion::diffusion::preconditioning::Preconditioning;
use accordion::nets::model::Card;
use accordion::nets::network::{Backbone, Network};
use accordion::nets::{Denoiser, Model, public};
use accordion::supernet::{Pipe, Supernet, ranking};
use accordion::training::importance::{Samples, taylor};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const NAMES: [&str; 3] = ["song_unet_vp_cond", "song_unet_edm_uncond", "song_unet_ve_ncsnpp"];

fn fixture(file: String) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

struct Golden {
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
    Golden { model: Model::unallocated(card, supernet).unwrap(), expected }
}

impl Golden {
    /// A tensor of images, channels last.
    fn images(&self, name: &str) -> Vec<f32> {
        self.expected[name].permute((0, 2, 3, 1)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
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
        let got = golden.model.denoise(0, &golden.images("x"), &golden.sigma(), &golden.classes()).unwrap();
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

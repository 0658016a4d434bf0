//! The golden values of tests/goldens: networks, inputs and what PyTorch made of them.

use accordion::checkpoint;
use accordion::diffusion::preconditioning::Preconditioning;
use accordion::nets::model::Card;
use accordion::nets::{Backbone, Model, Network, public};
use accordion::supernet::{Order, Pipe, Subnet, Supernet, Widths, ranking};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The keep ratios of the reference's subnets.
pub const RATIOS: [f64; 3] = [0.25, 0.5, 0.75];
/// The networks.
pub const NAMES: [&str; 5] =
    ["song_unet_vp_cond", "song_unet_edm_uncond", "song_unet_ve_ncsnpp", "adm_tiny", "u_vit_uncond"];

fn fixture(file: String) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

/// A network with its expected values.
pub struct Golden {
    json: serde_json::Value,
    pub model: Model,
    pub expected: HashMap<String, Tensor>,
}

pub fn golden(name: &str) -> Golden {
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture(format!("{name}.json"))).unwrap()).unwrap();
    let mut config = json["config"].clone();
    config["arch"] = match name.split('_').next().unwrap() {
        "song" => "song-unet",
        "adm" => "adm",
        _ => "u-vit",
    }
    .into();
    let backbone: Backbone = serde_json::from_value(config).unwrap();
    // The U-ViT predicts the noise of the VP process, as that preconditioning has it.
    let preconditioning = match json["preconditioning"].as_str().unwrap_or("vp") {
        "vp" => Preconditioning::Vp,
        "ve" => Preconditioning::Ve,
        _ => Preconditioning::Edm { sigma_data: 0.5 },
    };
    let network = Network::new(&backbone, preconditioning).unwrap();
    let checkpoint = checkpoint::open(&fixture(format!("{name}.weights.safetensors"))).unwrap();
    let params = public::read(network.spec(), &checkpoint.parts[0].tensors.unwrapped()[0]).unwrap();
    let supernet = Supernet::original(network.spec(), params);
    let card = Card::new(name.into(), backbone, preconditioning, vec![]);
    let expected =
        candle_core::safetensors::load(fixture(format!("{name}.expected.safetensors")), &Device::Cpu).unwrap();
    Golden { json, model: Model::unallocated(card, supernet).unwrap(), expected }
}

impl Golden {
    /// The reference's kept widths at a ratio.
    pub fn widths(&self, ratio: f64) -> Widths {
        let table = &self.json["allocation"][format!("{ratio:.3}")];
        let kept = |pipe: &Pipe| table[&pipe.block][format!("{}_keep", pipe.kind.as_str())].as_u64().unwrap() as usize;
        Widths(self.model.network.spec().pipes.iter().map(kept).collect())
    }

    /// The model in the reference's ranking, with its subnets.
    pub fn allocated(self) -> (Model, HashMap<String, Tensor>) {
        let spec = self.model.network.spec();
        let scores: Vec<_> = spec.pipes.iter().map(|pipe| self.importance(pipe)).collect();
        let rows = RATIOS.iter().map(|&ratio| Subnet::new(spec, ratio, &self.widths(ratio))).collect();
        let model = self.model.ranked(&scores, Order::Global).unwrap().with_subnets("channels", rows).unwrap();
        (model, self.expected)
    }

    /// A tensor of images, channels last.
    pub fn images(&self, name: &str) -> Vec<f32> {
        images(&self.expected, name)
    }

    /// The clean images, the noise on them, and both together.
    #[allow(dead_code, reason = "not every test calls the network")]
    pub fn batch(&self) -> [Vec<f32>; 3] {
        let noise = if self.is_of_time() { "eps" } else { "noise" };
        let (x0, noise) = (self.images("x0"), self.images(noise));
        let elements = self.model.image().elements();
        let x = match self.is_of_time() {
            // `xt` of the VP process, which is `alpha (x0 + sigma eps)`.
            true => {
                let (xt, sigma) = (self.images("xt"), self.sigma());
                let alpha = |index: usize| (1.0 + sigma[index / elements].powi(2)).sqrt();
                xt.iter().enumerate().map(|(index, &x)| (f64::from(x) * alpha(index)) as f32).collect()
            }
            false => self.images("x"),
        };
        [x0, noise, x]
    }

    /// Whether its values are of a time of the VP process rather than of a noise level.
    fn is_of_time(&self) -> bool {
        self.expected.contains_key("t")
    }

    /// The reference's scores of a pipe.
    pub fn importance(&self, pipe: &Pipe) -> Vec<f64> {
        let scores = self.expected[&ranking::tensor_name(pipe)].to_vec1::<f32>().unwrap();
        scores.into_iter().map(f64::from).collect()
    }

    pub fn sigma(&self) -> Vec<f64> {
        let read = |name: &str| self.expected[name].to_vec1::<f32>().unwrap().into_iter().map(f64::from);
        match self.is_of_time() {
            true => read("t").map(sigma_at).collect(),
            false => read("sigma").collect(),
        }
    }

    pub fn classes(&self) -> Vec<Option<usize>> {
        match self.expected.get("class_labels") {
            None => vec![None; self.sigma().len()],
            Some(labels) => {
                let rows = labels.to_vec2::<f32>().unwrap();
                rows.iter().map(|row| row.iter().position(|&value| value == 1.0)).collect()
            }
        }
    }
}

/// A tensor of images, channels last.
pub fn images(expected: &HashMap<String, Tensor>, name: &str) -> Vec<f32> {
    let images = expected[name].permute((0, 2, 3, 1)).unwrap().to_dtype(DType::F32).unwrap();
    images.flatten_all().unwrap().to_vec1().unwrap()
}

/// The noise level of the VP process at time `t` (Karras et al. 2022, table 1).
pub fn sigma_at(t: f64) -> f64 {
    (0.5 * 19.9 * t * t + 0.1 * t).exp_m1().sqrt()
}

#[allow(dead_code, reason = "not every test compares with it")]
/// What a reference names its output, and that output for these denoised images of `x`: the noise, where it predicts noise.
pub fn output(
    expected: &HashMap<String, Tensor>,
    x: &[f32],
    sigma: &[f64],
    denoised: &[f32],
) -> (&'static str, Vec<f32>) {
    if !expected.contains_key("t") {
        return ("denoised", denoised.to_vec());
    }
    let elements = x.len() / sigma.len();
    let pairs = x.iter().zip(denoised).enumerate();
    ("noise_pred", pairs.map(|(index, (x, d))| (x - d) / sigma[index / elements] as f32).collect())
}

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
pub const NAMES: [&str; 3] = ["song_unet_vp_cond", "song_unet_edm_uncond", "song_unet_ve_ncsnpp"];

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
    let backbone = Backbone::SongUnet(serde_json::from_value(json["config"].clone()).unwrap());
    let preconditioning = match json["preconditioning"].as_str().unwrap() {
        "vp" => Preconditioning::Vp,
        "ve" => Preconditioning::Ve,
        _ => Preconditioning::Edm { sigma_data: 0.5 },
    };
    let network = Network::new(&backbone, preconditioning).unwrap();
    let checkpoint = checkpoint::open(&fixture(format!("{name}.weights.safetensors"))).unwrap();
    let params = public::read(network.spec(), &checkpoint.parts[0].tensors.under("model.")).unwrap();
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

    /// The reference's scores of a pipe.
    pub fn importance(&self, pipe: &Pipe) -> Vec<f64> {
        let scores = self.expected[&ranking::tensor_name(pipe)].to_vec1::<f32>().unwrap();
        scores.into_iter().map(f64::from).collect()
    }

    pub fn sigma(&self) -> Vec<f64> {
        self.expected["sigma"].to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
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

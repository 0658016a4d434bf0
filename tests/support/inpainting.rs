//! The tiny pipeline with a network for inpainting.

use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// What `benches/peers/edits.py` wrote: a picture, a mask, the wide layer, and what diffusers makes of them.
pub fn golden() -> HashMap<String, Tensor> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/sd_tiny.edits.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

/// Makes the U-Net of a pipeline in `dir` one that is given a mask and a picture, too.
pub fn widen(dir: &Path, golden: &HashMap<String, Tensor>) {
    let config = dir.join("unet/config.json");
    let mut fields: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    fields.insert("in_channels".into(), 9.into());
    std::fs::write(config, serde_json::to_string(&fields).unwrap()).unwrap();
    let weights = dir.join("unet/diffusion_pytorch_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    tensors.insert("conv_in.weight".into(), golden["conv_in.weight"].to_dtype(DType::F32).unwrap());
    candle_core::safetensors::save(&tensors, weights).unwrap();
}

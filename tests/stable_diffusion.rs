//! The parts of a Stable Diffusion pipeline against diffusers and transformers, value by value.

#[path = "support/compare.rs"]
mod compare;

use accordion::checkpoint;
use accordion::features::Runner;
use accordion::nets::program::Program;
use accordion::nets::{Threads, public, vae};
use accordion::supernet::Supernet;
use candle_core::{DType, Device, Tensor};
use compare::relative_error;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

fn expected() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture("sd_tiny.expected.safetensors"), &Device::Cpu).unwrap()
}

/// A tensor of images, channels last, and rows and columns of one.
fn images(expected: &HashMap<String, Tensor>, name: &str) -> (Vec<f32>, [usize; 2]) {
    let images = expected[name].permute((0, 2, 3, 1)).unwrap().to_dtype(DType::F32).unwrap();
    let (_, height, width, _) = images.dims4().unwrap();
    (images.flatten_all().unwrap().to_vec1().unwrap(), [height, width])
}

fn vae() -> vae::Config {
    let config: vae::Config =
        serde_json::from_slice(&std::fs::read(fixture("sd_tiny/vae/config.json")).unwrap()).unwrap();
    config.check().unwrap();
    config
}

/// Runs a half of the autoencoder.
fn run(program: Program, images: &[f32]) -> Vec<f32> {
    let checkpoint = checkpoint::open(&fixture("sd_tiny/vae/diffusion_pytorch_model.safetensors")).unwrap();
    let params = public::read_among(&program.spec, &checkpoint.parts[0].tensors.unwrapped()[0]).unwrap();
    let weights = Supernet::original(&program.spec, params);
    Runner::new(Arc::new(program), &weights, Threads::ALL).unwrap().run(images)
}

#[track_caller]
fn assert_near(what: &str, got: &[f32], want: &[f32]) {
    let error = relative_error(got, want);
    println!("{what}: {error:.1e} of the range");
    assert!(error < 1e-5, "{what}: {error:.1e} of the range");
}

#[test]
fn latents_are_decoded_as_diffusers_does() {
    let (config, expected) = (vae(), expected());
    let (latents, [height, width]) = images(&expected, "vae_latent");
    let got = run(config.decoder(height, width), &latents);
    assert_near("vae_decoded", &got, &images(&expected, "vae_decoded").0);
}

#[test]
fn pictures_are_encoded_as_diffusers_does() {
    let (config, expected) = (vae(), expected());
    let (pictures, [height, width]) = images(&expected, "vae_image");
    let got = run(config.encoder(height, width), &pictures);
    let channels = config.latent_channels;
    let part = |first: usize| {
        got.chunks(2 * channels).flat_map(|pixel| &pixel[first..][..channels]).copied().collect::<Vec<_>>()
    };
    assert_near("vae_mean", &part(0), &images(&expected, "vae_mean").0);
    assert_near("vae_logvar", &part(channels), &images(&expected, "vae_logvar").0);
}

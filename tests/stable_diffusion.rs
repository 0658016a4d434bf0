//! The parts of a Stable Diffusion pipeline against diffusers and transformers, value by value.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/emulated.rs"]
mod emulated;
#[allow(dead_code, reason = "the denoisers' tests call the rest")]
#[path = "support/reference.rs"]
mod reference;

use accordion::checkpoint;
use accordion::diffusion::preconditioning::Preconditioning;
use accordion::nets::backbone::Architecture;
use accordion::nets::on_cpu::{Packed, SubnetView};
use accordion::nets::on_gpu::{Addresses, Compiled};
use accordion::nets::program::{Inputs, Program};
use accordion::nets::sliced::Sliced;
use accordion::nets::{Network, Runner, Threads, on_tape, public, unet, vae};
use accordion::ops::Tape;
use accordion::ops::cpu::fused::Workspace;
use accordion::ops::cuda::{Accelerator, Precision};
use accordion::philox::Stream;
use accordion::supernet::{Order, Pipe, Spec, Supernet, Widths, allocation, ranking};
use accordion::text::{TextEncoder, Tokenizer};
use accordion::training::importance::{Samples, taylor};
use candle_core::{DType, Device, Tensor};
use compare::relative_error;
use emulated::Emulated;
use reference::Reference;
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

fn config<T: serde::de::DeserializeOwned>(part: &str) -> T {
    serde_json::from_slice(&std::fs::read(fixture(&format!("sd_tiny/{part}/config.json"))).unwrap()).unwrap()
}

fn vae() -> vae::Config {
    let config: vae::Config = config("vae");
    config.check().unwrap();
    config
}

/// The weights of a part of a pipeline that are a program's.
fn weights(part: &str, program: &Program) -> Supernet {
    let file = fixture(&format!("{part}/diffusion_pytorch_model.safetensors"));
    let tensors = &checkpoint::open(&file).unwrap().parts[0].tensors.unwrapped()[0];
    let params = match part.ends_with("unet") {
        true => public::read(&program.spec, tensors),
        // Each half passes over the other.
        false => public::read_among(&program.spec, &vae::named_as_today(tensors)),
    };
    Supernet::original(&program.spec, params.unwrap())
}

/// Runs a half of an autoencoder.
fn run(part: &str, program: Program, images: &[f32]) -> Vec<f32> {
    let weights = weights(part, &program);
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
    // Those of 2022 have other names.
    for part in ["sd_tiny/vae", "sd_tiny_older_names/vae"] {
        let got = run(part, config.decoder(height, width), &latents);
        assert_near(&format!("vae_decoded by {part}"), &got, &images(&expected, "vae_decoded").0);
    }
}

#[test]
fn pictures_are_encoded_as_diffusers_does() {
    let (config, expected) = (vae(), expected());
    let (pictures, [height, width]) = images(&expected, "vae_image");
    let got = run("sd_tiny/vae", config.encoder(height, width), &pictures);
    let channels = config.latent_channels;
    let part = |first: usize| {
        got.chunks(2 * channels).flat_map(|pixel| &pixel[first..][..channels]).copied().collect::<Vec<_>>()
    };
    assert_near("vae_mean", &part(0), &images(&expected, "vae_mean").0);
    assert_near("vae_logvar", &part(channels), &images(&expected, "vae_logvar").0);
}

/// Runs a half of an autoencoder on one image by the kernels of a GPU, in emulation.
fn run_on_device(program: Program, images: &[f32], precision: Precision) -> Vec<f32> {
    let (size, weights) = (program.image, weights("sd_tiny/vae", &program));
    let full = [program.spec.full()];
    let (compiled, bytes) = Compiled::new(Arc::new(program), weights, precision, &full).unwrap();
    let mut machine = Emulated::new(1 << 28, emulation::Order::ALL[0]);
    let mut hold = |bytes: &[u8]| {
        let address = machine.allocate(bytes.len()).unwrap();
        machine.upload(address, bytes).unwrap();
        address
    };
    let mut input = Vec::new();
    for pixel in images.chunks_exact(size.channels) {
        precision.write(pixel.iter().copied().chain([0.0; 8]).take(8), &mut input);
    }
    let input = hold(&input);
    let addresses = Addresses {
        weights: hold(&bytes),
        arena: hold(&vec![0; compiled.arena_bytes(size, 1)]),
        samples: hold(&input.to_le_bytes()),
        counters: hold(&[0; 4]),
        ..Addresses::default()
    };
    let call = compiled.call(0, size, 1, &addresses);
    call.launches.iter().for_each(|launch| machine.launch(launch).unwrap());
    let mut made = vec![0; call.output.bytes(precision)];
    machine.download(call.output.address, &mut made).unwrap();
    let pixels = precision.read(&made);
    pixels.chunks_exact(call.output.pitch()).flat_map(|pixel| &pixel[..call.output.channels]).copied().collect()
}

#[test]
fn both_halves_of_the_autoencoder_run_on_a_device_as_on_the_cpu() {
    let config = vae();
    // Small: the emulation takes its time.
    let halves: [(&str, &dyn Fn() -> Program); 2] =
        [("encoder", &|| config.encoder(32, 16)), ("decoder", &|| config.decoder(4, 2))];
    for (name, half) in halves {
        let mut images = vec![0.0; half().image.elements()];
        Stream::new(6, 1, 0).fill_normals(&mut images);
        let want = run("sd_tiny/vae", half(), &images);
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::F16, 1e-2), (Precision::Bf16, 5e-2)] {
            let error = relative_error(&run_on_device(half(), &images, precision), &want);
            println!("{name} {precision}: {error:.1e}");
            assert!(error < tolerance, "{name} {precision}: {error:.1e}");
        }
    }
}

fn floats(expected: &HashMap<String, Tensor>, name: &str) -> Vec<f32> {
    expected[name].to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// What the U-Net makes of some latents.
struct Told {
    latents: Vec<f32>,
    size: [usize; 2],
    times: Vec<f32>,
    context: Vec<f32>,
}

impl Told {
    fn new(expected: &HashMap<String, Tensor>, latents: &str, times: &str) -> Self {
        let (latents, size) = images(expected, latents);
        let times = floats(expected, times);
        let of_sample = expected["context"].dims3().map(|(_, tokens, channels)| tokens * channels).unwrap();
        Self { latents, size, context: floats(expected, "context")[..times.len() * of_sample].to_vec(), times }
    }

    /// By the fused kernels, of a subnet.
    fn on_cpu(&self, program: &Arc<Program>, supernet: &Supernet, widths: &Widths) -> Vec<f32> {
        let (batch, image) = (self.times.len(), program.image);
        let packed = Packed::new(Arc::clone(program), supernet).unwrap();
        let view = SubnetView::new(&program.spec, supernet, widths.clone());
        let mut workspace = Workspace::new(accordion::ops::cpu::fused::Team::new(2, false));
        let mut x = workspace.arena.map([batch, image.height, image.width, image.channels]);
        x.copy_from(&self.latents);
        let inputs = Inputs { noise: &self.times, class: &vec![None; batch], context: &self.context };
        let made = packed.forward(&mut workspace, &view, &x, inputs);
        made.data().chunks_exact(made.pitch()).flat_map(|pixel| &pixel[..made.channels]).copied().collect()
    }

    /// On plain tensors.
    fn on_tape(&self, program: &Program, supernet: &Supernet, widths: &Widths) -> Vec<f32> {
        let (batch, image) = (self.times.len(), program.image);
        let sliced = Sliced::new(&program.spec, supernet, widths).unwrap();
        let shape = (batch, image.height, image.width, image.channels);
        let x = Tensor::from_slice(&self.latents, shape, &Device::Cpu).unwrap();
        let inputs = Inputs { noise: &self.times, class: &vec![None; batch], context: &self.context };
        let made = on_tape::forward(program, &Tape::off(), &sliced, &x, inputs).unwrap();
        made.flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// The importances that came with the goldens.
fn stored_importance(spec: &Spec, expected: &HashMap<String, Tensor>) -> Vec<Vec<f64>> {
    let of_pipe = |pipe: &Pipe| {
        let scores = floats(expected, &format!("importance.{}.{}", pipe.kind.as_str(), pipe.block));
        assert_eq!(scores.len(), pipe.width, "{}", pipe.name);
        scores.into_iter().map(f64::from).collect()
    };
    spec.pipes.iter().map(of_pipe).collect()
}

fn json() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture("sd_tiny.json")).unwrap()).unwrap()
}

/// The widths that the reference allocates.
fn stored_widths(spec: &Spec, json: &serde_json::Value, ratio: &str) -> Widths {
    let table = &json["allocation"][ratio];
    let kept = |pipe: &Pipe| table[&pipe.block][format!("{}_keep", pipe.kind.as_str())].as_u64().unwrap() as usize;
    Widths(spec.pipes.iter().map(kept).collect())
}

fn unet(size: [usize; 2]) -> (Arc<Program>, Supernet) {
    let config: unet::Config = config("unet");
    config.check().unwrap();
    let program = config.program(size[0], size[1]);
    let supernet = weights("sd_tiny/unet", &program);
    (Arc::new(program), supernet)
}

#[test]
fn noise_is_predicted_as_diffusers_does() {
    let expected = expected();
    for (latents, times, want) in [("latents_xt", "t", "eps_full"), ("wide_latents", "wide_t", "wide_eps")] {
        let told = Told::new(&expected, latents, times);
        let (program, supernet) = unet(told.size);
        let (full, want) = (program.spec.full(), images(&expected, want).0);
        assert_near(&format!("{latents} on the CPU"), &told.on_cpu(&program, &supernet, &full), &want);
        assert_near(&format!("{latents} on the tape"), &told.on_tape(&program, &supernet, &full), &want);
    }
}

#[test]
fn plain_loops_predict_the_same_noise() {
    let expected = expected();
    let told = Told::new(&expected, "wide_latents", "wide_t");
    let (program, supernet) = unet(told.size);
    let mut loops = Reference::of(&program, &supernet, program.spec.full(), Preconditioning::STABLE_DIFFUSION);
    let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<f64>>();
    loops.context = wide(&told.context);
    let got = loops.raw(wide(&told.latents), f64::from(told.times[0]), None);
    let got: Vec<f32> = got.into_iter().map(|value| value as f32).collect();
    assert_near("wide_eps in plain loops", &got, &images(&expected, "wide_eps").0);
}

#[test]
fn subnets_predict_noise_as_the_reference_does() {
    let expected = expected();
    let json = json();
    let told = Told::new(&expected, "latents_xt", "t");
    let (program, supernet) = unet(told.size);
    let spec = &program.spec;
    let orders = ranking::order_global(&stored_importance(spec, &expected));
    let supernet = supernet.permuted(spec, &orders, Order::Global).unwrap();
    for ratio in ["0.250", "0.500", "0.750"] {
        let widths = stored_widths(spec, &json, ratio);
        let want = images(&expected, &format!("eps_subnet_{ratio}")).0;
        assert_near(&format!("{ratio} on the CPU"), &told.on_cpu(&program, &supernet, &widths), &want);
        assert_near(&format!("{ratio} on the tape"), &told.on_tape(&program, &supernet, &widths), &want);
    }
}

#[test]
fn the_steps_have_the_noise_levels_of_diffusers() {
    let expected = expected();
    let kept: Vec<f64> = expected["alphas_cumprod_f64"].to_vec1().unwrap();
    let process = Preconditioning::STABLE_DIFFUSION;
    assert_eq!(process.steps().count(), kept.len());
    for (step, (level, kept)) in process.steps().zip(kept).enumerate() {
        assert!((level * level * kept / (1.0 - kept) - 1.0).abs() < 1e-12, "step {step}");
        assert!((process.coefficients(level).c_noise - step as f64).abs() < 1e-9, "step {step}");
    }
    assert_eq!(process.coefficients(1e-3).c_noise, 0.0);
    assert_eq!(process.coefficients(100.0).c_noise, 999.0);
}

#[test]
fn importance_and_allocation_are_those_of_the_reference() {
    let (expected, json) = (expected(), json());
    let told = Told::new(&expected, "latents_xt", "t");
    let (program, supernet) = unet(told.size);
    let process = Preconditioning::STABLE_DIFFUSION;
    let levels: Vec<f64> = process.steps().collect();
    let samples = Samples {
        x0: images(&expected, "latents_x0").0,
        noise: images(&expected, "noise").0,
        sigma: told.times.iter().map(|&time| levels[time as usize]).collect(),
        classes: vec![None; told.times.len()],
        context: told.context,
    };
    let network = Network::of(Arc::clone(&program), process);
    let scores = taylor(&network, &supernet, &samples, |_| ()).unwrap();
    let stored = stored_importance(&program.spec, &expected);
    for (pipe, (got, want)) in program.spec.pipes.iter().zip(scores.iter().zip(&stored)) {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let error = norm(&mut got.iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied());
        println!("{}: {error:.1e}", pipe.name);
        // As that of the other networks: float32 sums in another order, of terms that cancel.
        assert!(error < 1e-3, "{}: {error:.1e}", pipe.name);
    }
    let ratios = json["allocation"].as_object().unwrap().keys();
    for ratio in ratios.filter(|ratio| *ratio != "1.000") {
        let widths = allocation::channels(&program.spec, &stored, ratio.parse().unwrap(), Default::default()).unwrap();
        assert_eq!(widths, stored_widths(&program.spec, &json, ratio), "{ratio}");
    }
}

/// The encoder of texts of a pipeline.
fn text_encoder(dir: &str) -> TextEncoder {
    let tensors = checkpoint::component(&fixture(dir).join("text_encoder")).unwrap();
    TextEncoder::new(&tensors, config("text_encoder")).unwrap()
}

#[test]
fn hidden_states_of_texts_are_those_of_transformers_whatever_their_weights_are_called() {
    let (expected, json) = (expected(), json());
    let prompts: Vec<&str> =
        json["text_prompts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let tokenizer = Tokenizer::open(&fixture("sd_tiny")).unwrap();
    for dir in ["sd_tiny", "sd_tiny_older_names"] {
        let encoder = text_encoder(dir);
        assert_eq!((encoder.length(), encoder.ids()), (unet::TOKENS, tokenizer.ids()));
        let (hidden, cut) = encoder.contexts(&tokenizer, &prompts).unwrap();
        assert_eq!(cut, [false; 3]);
        let hidden: Vec<f32> = hidden.flatten_all().unwrap().to_vec1().unwrap();
        assert_near(&format!("text_hidden of {dir}"), &hidden, &floats(&expected, "text_hidden"));
    }
    // 75 ids beside the start and the end are the most that fit.
    let encoder = text_encoder("sd_tiny");
    let one =
        tokenizer.encode("robot", unet::TOKENS).unwrap().iter().position(|&id| id == tokenizer.end()).unwrap() - 1;
    let [fits, more] = [75 / one, 75 / one + 1].map(|times| vec!["robot"; times].join(" "));
    assert_eq!(encoder.contexts(&tokenizer, &[&fits, &more]).unwrap().1, [false, true]);
}

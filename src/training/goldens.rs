//! A training step of a pipeline against PyTorch: `benches/peers/text_training.py` has made the expected values.

use super::autoencoder::AutoencoderTrainer;
use super::batch::Batch;
use super::config::Config;
use super::data::{Dataset, Examples};
use super::state::{StageName, State, Weight};
use super::texts::TrainedTexts;
use super::trainer::{Task, Trainer};
use crate::nets::recognition::pipeline;
use crate::nets::sliced::Sliced;
use crate::nets::{Decoder, Encoder, Model, Threads, public};
use crate::ops::pixels::to_unit;
use crate::philox::{NoiseKey, Stream};
use crate::supernet::{Spec, Subnet};
use crate::text::Contexts;
use crate::{ImageShape, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const CAPTION: &str = "a photo of a cat";
/// The share of a gradient's norm that its values may be off: f32 against f64.
const TOLERANCE: f64 = 2e-4;

struct Golden {
    tensors: HashMap<String, Tensor>,
    /// Of the weights of each part, sorted.
    names: BTreeMap<String, Vec<String>>,
    _dir: TempDir,
    model: Model,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

impl Golden {
    fn open() -> Self {
        let path = fixture("sd_tiny.training.safetensors");
        let metadata = crate::files::parse_metadata(&path, &std::fs::read(&path).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let opened = pipeline::open(&fixture("sd_tiny"), None).unwrap().unwrap();
        Self {
            tensors: candle_core::safetensors::load(&path, &Device::Cpu).unwrap(),
            names: serde_json::from_str(&metadata["names"]).unwrap(),
            model: opened.into_model("tiny".into(), dir.path()).unwrap(),
            _dir: dir,
        }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.tensors[name].to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Pictures in [-1, 1].
    fn pictures(&self) -> Vec<f32> {
        self.floats("pictures").into_iter().map(|byte| to_unit(byte as u8)).collect()
    }

    /// Asserts that norms and products with random directions are those of the gradients `found` by name, of the part `part`.
    fn assert_gradients(&self, expected: &str, part: &str, found: &BTreeMap<String, Vec<f32>>) {
        assert_eq!(&found.keys().cloned().collect::<Vec<_>>(), &self.names[part], "{part}");
        let expected = self.floats(expected);
        let stream = NoiseKey { seed: 7, image: 0 }.draw(0);
        let all = found.values().flatten().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        assert!(all > 0.1, "{part}: {all}");
        let mut most = 0.0f64;
        for ((name, gradient), expected) in found.iter().zip(expected.chunks_exact(2)) {
            let mut direction = vec![0.0; gradient.len()];
            stream.fill_normals(&mut direction);
            let norm = gradient.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            let dot: f64 = gradient.iter().zip(&direction).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            let [want_norm, want_dot] = [0, 1].map(|at| f64::from(expected[at]));
            // Gradients that are zero but for rounding, such as those of the biases of keys, have no digits of their own.
            let scale = want_norm.max(1e-4 * all);
            let error = ((norm - want_norm).abs() / scale).max((dot - want_dot).abs() / scale);
            assert!(error < TOLERANCE, "{part} {name}: {norm:e} and {dot:e}, not {want_norm:e} and {want_dot:e}");
            most = most.max(error);
        }
        println!("{part}: {} gradients, each within {most:.1e} of a norm", expected.len());
    }
}

/// Gradients of parameters by public name.
fn by_name(spec: &Spec, gradients: &[Option<Vec<f32>>]) -> BTreeMap<String, Vec<f32>> {
    let tensor = |(param, gradient): (&crate::supernet::Param, &Option<Vec<f32>>)| {
        let zeros = || vec![0.0; param.shape.iter().product()];
        Tensor::from_vec(gradient.clone().unwrap_or_else(zeros), param.shape.as_slice(), &Device::Cpu).unwrap()
    };
    let tensors: Vec<Tensor> = spec.params.iter().zip(gradients).map(tensor).collect();
    public::values(spec, &tensors).unwrap()
}

/// One caption, without latents.
struct Captions(Vec<String>, Contexts, ImageShape);

impl Examples for Captions {
    fn count(&self) -> usize {
        1
    }

    fn shape(&self) -> ImageShape {
        self.2
    }

    fn write(&self, _: usize, _: bool, _: &Stream, _: &mut [f32]) {
        unreachable!("the batch is given")
    }

    fn label(&self, _: usize) -> usize {
        0
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn captions(&self) -> &[String] {
        &self.0
    }

    fn contexts(&self, labels: &[Option<usize>]) -> Result<Vec<f32>> {
        let context = |label: &Option<usize>| self.1.of(label.map_or("", |label| &self.0[label])).unwrap().values;
        Ok(labels.iter().flat_map(|label| context(label).to_vec()).collect())
    }

    fn statistics(&self) -> (f64, f64) {
        (0.0, 1.0)
    }

    fn summary(&self) -> String {
        String::new()
    }
}

fn config(text: &str) -> Config {
    let stage = "images = 1\nbatch = 1\nlearning_rate = 1e-3\nema_half_life = 1\n";
    let text = format!(
        "name = 'x'\n[data]\nformat = 'captioned'\npath = 'x'\n[full]\n{stage}text_encoder = true\n[vae]\n{stage}[loss]\n{text}"
    );
    toml::from_str(&text).unwrap()
}

#[test]
fn the_gradients_of_a_step_on_captions_are_those_of_pytorch() {
    let golden = Golden::open();
    let model = &golden.model;
    let spec = model.network.spec();
    let [x0, noise] = ["x0", "noise"].map(|name| golden.floats(name));
    let elements = x0.len() / 2;
    let levels: Vec<f64> = model.network.preconditioning().steps().collect();
    let steps: Vec<i64> = golden.tensors["steps"].to_vec1().unwrap();
    let sigma: Vec<f64> = steps.iter().map(|&step| levels[step as usize]).collect();
    let noisy = |(at, (x0, noise)): (usize, (&f32, &f32))| x0 + sigma[at / elements] as f32 * noise;
    let x: Vec<f32> = x0.iter().zip(&noise).enumerate().map(noisy).collect();
    let labels = vec![Some(0), None];
    let batch = || Batch { x0: x0.clone(), x: x.clone(), sigma: sigma.clone(), labels: labels.clone() };
    let examples = Captions(vec![CAPTION.to_owned()], model.contexts().unwrap().unwrap(), model.network.state());
    for (name, loss) in [("plain", ""), ("min_snr", "min_snr = 5.0")] {
        let config = config(loss);
        let texts = TrainedTexts::new(model, examples.captions()).unwrap();
        let state = State::begin(StageName::Full, &model.supernet, &[]).unwrap();
        let state = state.with_beside(texts.initial().unwrap());
        let full = [Subnet::new(spec, 1.0, &spec.full())];
        let trainer = Trainer::new(&model.network, &config, &examples, &full, state, None).unwrap();
        let trainer = trainer.with_texts(Some(texts)).unwrap();
        let told = trainer.task.told(batch(), trainer.state.beside()).unwrap();
        let subnet = Sliced::new(spec, &model.supernet, &spec.full()).unwrap();
        let pass = trainer.task.pass(&subnet, &told, None).unwrap();
        let want = f64::from(golden.floats(&format!("{name}.loss"))[0]);
        assert!((pass.loss - want).abs() < 1e-5 * want, "{name}: {} is not {want}", pass.loss);
        golden.assert_gradients(&format!("{name}.unet"), "unet", &by_name(spec, &pass.gradients.values));
        let texts = trainer.texts().unwrap();
        let gradients = trainer.task.beside(&told, &pass.gradients).unwrap();
        let names = texts.initial().unwrap().into_iter().map(|weight| weight.name["text_encoder.".len()..].to_owned());
        let found = names.zip(gradients).map(|(name, gradient)| (name, gradient.unwrap())).collect();
        golden.assert_gradients(&format!("{name}.text_encoder"), "text_encoder", &found);
    }
}

#[test]
fn the_gradients_of_a_step_of_the_autoencoder_are_those_of_pytorch() {
    let golden = Golden::open();
    let (encoder, encoder_weights) = golden.model.encoder_network().unwrap().unwrap();
    let Decoder { program: decoder, supernet: decoder_weights, .. } =
        Decoder::original(&golden.model).unwrap().unwrap();
    let config = config("kl = 1e-2");
    let beside = encoder.spec.params.iter().zip(&encoder_weights.params).map(|(param, weight)| {
        let values = weight.flatten_all().unwrap().to_vec1().unwrap();
        Weight { name: param.name.clone(), shape: param.shape.clone(), values }
    });
    let state = State::begin(StageName::Vae, &decoder_weights, &[]).unwrap().with_beside(beside.collect());
    let nothing = Dataset { shape: encoder.image, classes: vec![], images: vec![], labels: vec![0] };
    let specs = [encoder.spec.clone(), decoder.spec.clone()];
    let stage = config.stage(StageName::Vae).unwrap();
    let trainer = AutoencoderTrainer::new([encoder, decoder], &config, stage, &nothing, state);
    let pass = trainer.pass(&golden.pictures(), &golden.floats("vae.chance")).unwrap();
    let want = f64::from(golden.floats("vae.loss")[0]);
    assert!((pass.loss - want).abs() < 1e-5 * want, "{} is not {want}", pass.loss);
    let (of_decoder, of_encoder) = pass.gradients.split_at(specs[1].params.len());
    let mut found = by_name(&specs[1], of_decoder);
    found.extend(by_name(&specs[0], of_encoder));
    golden.assert_gradients("vae", "vae", &found);
}

#[test]
fn the_distribution_of_a_latent_is_that_of_diffusers() {
    let golden = Golden::open();
    let mut encoder = Encoder::of(&golden.model, Threads::ALL).unwrap().unwrap();
    let size = golden.model.canvases()[0].picture;
    let pictures = golden.pictures();
    let found: Vec<f32> =
        pictures.chunks_exact(size.elements()).flat_map(|picture| encoder.moments(size, picture).unwrap()).collect();
    let want = golden.floats("moments");
    let range = want.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let most = found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(found.len() == want.len() && most < 1e-5 * range, "{most} of {range}");
}

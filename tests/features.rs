//! The networks of features against what PyTorch computes with them.

#[path = "support/compare.rs"]
mod compare;
#[allow(dead_code, reason = "the denoisers' tests call the rest")]
#[path = "support/reference.rs"]
mod reference;

use accordion::diffusion::preconditioning::Preconditioning;
use accordion::features::{Features, Inception};
use accordion::nets::Runner;
use accordion::nets::builder::{Builder, Draw, Weight};
use accordion::nets::inception::Tap;
use accordion::nets::on_gpu::Compiled;
use accordion::nets::program::{Channels, Inputs, Pool, Product, Program, ValueId, View};
use accordion::nets::sliced::Sliced;
use accordion::nets::{Threads, on_tape};
use accordion::ops::cpu::conv::Places;
use accordion::ops::cpu::pool::Reduce;
use accordion::ops::cuda::Precision;
use accordion::ops::{Act, Tape};
use accordion::training::trainer::initial;
use accordion::{Error, ImageShape};
use candle_core::{Device, Tensor};
use compare::relative_error;
use reference::Reference;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Float32 in another order, and Winograd's transforms, as a share of the largest feature; measured: 3e-6.
const TOLERANCE: f64 = 1e-5;

fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

fn json() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture("inception_formula.json")).unwrap()).unwrap()
}

/// In [-1, 1), of a tensor's name and the place of an element, as the golden's json says.
fn hashed(name: &str, index: usize) -> f64 {
    let bytes = name.bytes().chain((index as u32).to_le_bytes());
    let mut h = bytes.fold(0x811c_9dc5_u32, |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^= h >> 16;
    2.0 * f64::from(h >> 8) / f64::from(1 << 24) - 1.0
}

/// The values of a tensor of the golden network.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let inputs = shape.iter().skip(1).product::<usize>() as f64;
    let value = |u: f64| match name.rsplit_once('.').unwrap() {
        (layer, "weight") if layer.ends_with("conv") => u * (6.0 / inputs).sqrt(),
        ("fc", "weight") => u * (3.0 / inputs).sqrt(),
        (_, "weight" | "running_var") => 1.0 + u / 2.0,
        _ => u / 4.0,
    };
    (0..shape.iter().product()).map(|index| value(hashed(name, index)) as f32).collect()
}

fn shapes() -> BTreeMap<String, Vec<usize>> {
    serde_json::from_value(json()["tensors"].clone()).unwrap()
}

/// The golden network's tensors.
fn tensors() -> HashMap<String, Tensor> {
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let tensor = Tensor::from_vec(values(&name, &shape), shape, &Device::Cpu).unwrap();
        (name, tensor)
    };
    shapes().into_iter().map(tensor).collect()
}

/// A weights file of these tensors.
fn file(dir: &Path, tensors: &HashMap<String, Tensor>) -> PathBuf {
    let path = dir.join("inception.safetensors");
    candle_core::safetensors::save(tensors, &path).unwrap();
    path
}

/// The golden images, and what is expected of them.
struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn read() -> Self {
        Self(candle_core::safetensors::load(fixture("inception_formula.expected.safetensors"), &Device::Cpu).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.0[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    fn images(&self) -> impl Iterator<Item = (usize, Vec<u8>, ImageShape)> {
        let count = self.0.keys().filter(|name| name.starts_with("image_")).count();
        (0..count).map(|index| {
            let image = &self.0[&format!("image_{index}")];
            let (height, width, channels) = image.dims3().unwrap();
            (index, image.flatten_all().unwrap().to_vec1().unwrap(), ImageShape { height, width, channels })
        })
    }
}

/// A small network of all that the Inception has and no denoiser: ReLU, kernels that are not square, pools, several
/// parts.
fn branches() -> Program {
    fn conv(b: &mut Builder, name: &str, x: &[ValueId], channels: usize, places: Places) -> ValueId {
        let (from, weight) = (Channels::Fixed(b.stream(x)), Weight::new(Draw::Kaiming(2.0)));
        let layer = b.conv(name, places.kernel, from, Channels::Fixed(channels), weight);
        b.product(Product { places, act: Some(Act::Relu), ..Product::new(View::of(x), layer, places.kernel) })
    }
    fn pool(b: &mut Builder, name: &str, x: &[ValueId], reduce: Reduce, places: Places) -> ValueId {
        b.pool(name.into(), Pool { parts: x.to_vec(), reduce, places })
    }
    let mut b = Builder::new(ImageShape { height: 13, width: 11, channels: 3 }, 0, BTreeMap::new());
    let x = conv(&mut b, "first", &[0], 20, Places::square(3, 2, 1));
    let row = conv(&mut b, "row", &[x], 17, Places::same([1, 7]));
    let column = conv(&mut b, "column", &[x], 16, Places::same([7, 1]));
    let largest = pool(&mut b, "largest", &[x], Reduce::Max, Places::same([3, 3]));
    let five = conv(&mut b, "five", &[row, column, largest], 24, Places::same([5, 5]));
    let means = pool(&mut b, "means", &[five, row, largest], Reduce::Mean, Places::same([3, 3]));
    let inner = conv(&mut b, "inner", &[means], 33, Places::square(3, 1, 0));
    let half = pool(&mut b, "half", &[inner, inner], Reduce::Max, Places::square(3, 2, 0));
    pool(&mut b, "all", &[half], Reduce::Mean, Places::new([2, 1], 1, [0, 0]));
    b.build()
}

#[test]
fn branches_are_what_plain_loops_make_of_them_with_and_without_a_tape() {
    let program = Arc::new(branches());
    let weights = initial(&program.spec, 5).unwrap();
    let (shape, full) = (program.image, program.spec.full());
    let images: Vec<f32> = (0..2 * shape.elements()).map(|index| hashed("image", index) as f32).collect();
    let reference = Reference::of(&program, &weights, full.clone(), Preconditioning::Vp);
    let raw = |image: &[f32]| reference.raw(image.iter().map(|&value| f64::from(value)).collect(), 0.0, None);
    let want: Vec<f64> = images.chunks(shape.elements()).flat_map(raw).collect();
    assert!(want.len() == 2 * 66 && want.iter().filter(|&&value| value > 0.0).count() > 66);

    let fused = Runner::new(program.clone(), &weights, Threads::ALL).unwrap().run(&images);
    let error = relative_error(&fused, &want);
    assert!(error < TOLERANCE, "fused: {error:.1e}");

    let sliced = Sliced::new(&program.spec, &weights, &full).unwrap();
    let images = Tensor::from_vec(images, (2, shape.height, shape.width, shape.channels), &Device::Cpu).unwrap();
    let taped = on_tape::forward(&program, &Tape::off(), &sliced, &images, Inputs::NONE).unwrap();
    let error = relative_error(&taped.flatten_all().unwrap().to_vec1().unwrap(), &want);
    assert!(error < TOLERANCE, "on tape: {error:.1e}");
}

#[test]
fn a_gpu_refuses_what_it_has_no_kernel_for() {
    let program = Arc::new(branches());
    let weights = initial(&program.spec, 5).unwrap();
    let refused = Compiled::new(program, weights, Precision::F32, &[]).unwrap_err();
    assert_eq!(refused.to_string(), "backbone: first is a layer that runs on the CPU only; give `--device cpu`");
}

#[test]
fn the_formula_gives_the_weights_that_the_reference_has() {
    let shapes = shapes();
    for (name, want) in json()["check"].as_object().unwrap() {
        let want: Vec<f32> = serde_json::from_value(want.clone()).unwrap();
        assert_eq!(values(name, &shapes[name])[..want.len()], want, "{name}");
    }
}

#[test]
fn inception_s_features_are_the_reference_s_at_every_tap() {
    let (dir, golden) = (tempfile::tempdir().unwrap(), Golden::read());
    let path = file(dir.path(), &tensors());
    for (tap, name) in
        [(Tap::Pool1, "mean_64"), (Tap::Pool2, "mean_192"), (Tap::Mixed6e, "mean_768"), (Tap::Mixed7c, "pool3")]
    {
        let mut inception = Inception::open_at(&path, tap, Threads::ALL).unwrap();
        for (index, image, shape) in golden.images() {
            let got = inception.of(&image, shape).unwrap();
            let error = relative_error(&got, &golden.floats(&format!("{name}_{index}")));
            println!("{name}_{index} of {shape:?}: {error:.1e}");
            assert!(error < TOLERANCE, "{name}_{index}: {error:.1e} of the range");
        }
    }
}

#[test]
fn an_image_has_the_same_features_in_any_company_and_grey_is_three_equal_channels() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), &tensors());
    let grey = ImageShape { height: 20, width: 31, channels: 1 };
    let colour = ImageShape { channels: 3, ..grey };
    let pixel = |index: usize| (127.5 + 127.5 * hashed("image", index)) as u8;
    let greys: Vec<u8> = (0..3 * grey.elements()).map(pixel).collect();
    let colours: Vec<u8> = greys.iter().flat_map(|&byte| [byte; 3]).collect();
    let mut inception = Inception::open(&path, Threads::ALL).unwrap();
    assert_eq!(inception.dim(), 2048);
    let all = inception.of(&greys, grey).unwrap();
    assert_eq!(inception.of(&colours, colour).unwrap(), all);
    let mut alone = Inception::open(&path, Threads::new(1)).unwrap();
    let each: Vec<f32> = greys.chunks(grey.elements()).flat_map(|image| alone.of(image, grey).unwrap()).collect();
    assert_eq!(each, all);
    assert!(all[..2048] != all[2048..4096]);
    assert!(inception.of(&[], grey).unwrap().is_empty());
}

#[test]
fn a_file_without_the_network_s_tensors_is_refused_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tensors();
    tensors.remove("Mixed_5b.branch_pool.bn.running_var");
    tensors.insert("Conv2d_1a_3x3.bn.bias".into(), Tensor::new(&[1f32], &Device::Cpu).unwrap());
    let refused = Inception::open(&file(dir.path(), &tensors), Threads::ALL).unwrap_err();
    assert!(matches!(refused, Error::Input { .. }));
    let said = refused.to_string();
    assert!(said.contains("lacks 1 tensor of the network: Mixed_5b.branch_pool.bn.running_var"), "{said}");
    assert!(said.contains("has 1 tensor of another shape: Conv2d_1a_3x3.bn.bias [1], not [32]"), "{said}");
}

#[test]
fn images_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut inception = Inception::open_at(&file(dir.path(), &tensors()), Tap::Pool1, Threads::ALL).unwrap();
    let refused = inception.of(&[0; 8], ImageShape { height: 2, width: 2, channels: 2 }).unwrap_err();
    assert_eq!(refused.to_string(), "images: 2x2 of 2 channels is no image of 1 or 3 channels");
}

//! Outputs to the bit: a change of how a network is computed that was meant to change no value changes none of these.
//!
//! A change that is meant to change values prints the new table.

#[path = "support/emulated.rs"]
mod emulated;
#[path = "support/golden.rs"]
mod golden;

use accordion::nets::{Denoiser, DeviceRunner, HostRunner, Model, Threads};
use accordion::ops::cuda::Precision;
use accordion::philox::Stream;
use emulated::Emulated;
use emulation::{Order, Sequence};
use golden::{NAMES, golden};
use sha2::{Digest, Sha256};
use std::path::Path;

/// A network's subnet, the hash of what a CPU makes of it.
const CPU: &[(&str, &str)] = &[
    ("song_unet_vp_cond 0.250", "5a71ac0de4576841"),
    ("song_unet_vp_cond 0.500", "78a9cb9c7bf7ff4c"),
    ("song_unet_vp_cond 0.750", "92b76502f9d1d9fe"),
    ("song_unet_vp_cond full", "96b29bb7e62a5fab"),
    ("song_unet_edm_uncond 0.250", "0ee03702315927ab"),
    ("song_unet_edm_uncond 0.500", "0079cfd5e4321f27"),
    ("song_unet_edm_uncond 0.750", "ff658dbd60757509"),
    ("song_unet_edm_uncond full", "94500d8c492d7dd8"),
    ("song_unet_ve_ncsnpp 0.250", "0c07ae572d4e51be"),
    ("song_unet_ve_ncsnpp 0.500", "c651946c2456cd44"),
    ("song_unet_ve_ncsnpp 0.750", "18104f9ad6e8e3a0"),
    ("song_unet_ve_ncsnpp full", "d014fc986e799fb5"),
    ("adm_tiny 0.250", "535d70223a8b7089"),
    ("adm_tiny 0.500", "777fc4f74361f4bd"),
    ("adm_tiny 0.750", "cc64be666859bb43"),
    ("adm_tiny full", "6165bd59c70fb76f"),
    ("u_vit_uncond 0.250", "0c49b6d2b1a9fa4c"),
    ("u_vit_uncond 0.500", "48742bbf8a66618f"),
    ("u_vit_uncond 0.750", "5f4a689c7e093a27"),
    ("u_vit_uncond full", "082aeeebaaa2925e"),
    ("shipped 0.250", "00c82b9bf52e5aeb"),
    ("shipped 0.375", "36f8b33dcdd7fce0"),
    ("shipped 0.500", "0c16693493e24669"),
    ("shipped 0.625", "2c1b42453ac59225"),
    ("shipped 0.750", "306c0dc010fc4295"),
    ("shipped 0.875", "f27f278199a03bb3"),
    ("shipped full", "ed2627311e643ae7"),
];
/// The same of the kernels' emulation, in a type.
const EMULATED: &[(&str, &str)] = &[
    ("song_unet_vp_cond 0.250 f32", "d4ff6f118fa09751"),
    ("song_unet_vp_cond full f16", "5eefc8061fa6a8d8"),
    ("song_unet_edm_uncond 0.250 f32", "1109e41b69b782bc"),
    ("song_unet_edm_uncond full f16", "6fe00ad838873ec3"),
    ("song_unet_ve_ncsnpp 0.250 f32", "bafb6b60f1aca544"),
    ("song_unet_ve_ncsnpp full f16", "1df9e2c683301074"),
    ("adm_tiny 0.250 f32", "5bb8e71a997c9bc4"),
    ("adm_tiny full f16", "60a20bd17a577160"),
    ("u_vit_uncond 0.250 f32", "88a46282928f97d7"),
    ("u_vit_uncond full f16", "f86688b83f553f69"),
];

/// The first digits of the SHA-256 of these values.
fn hash(values: &[f32]) -> String {
    let digest = Sha256::digest(bytemuck::cast_slice(values));
    digest[..8].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[track_caller]
fn assert_pinned(found: &[(String, String)], pinned: &[(&str, &str)]) {
    let differs = |((name, hash), pinned): (&(String, String), &(&str, &str))| {
        (name, hash) != (&pinned.0.into(), &pinned.1.into())
    };
    if found.len() != pinned.len() || found.iter().zip(pinned).any(differs) {
        let table = found.iter().fold(String::new(), |all, (name, hash)| all + &format!("    ({name:?}, {hash:?}),\n"));
        panic!("other values than were pinned; these are:\n{table}");
    }
}

/// What a CPU makes of these samples, by subnet.
fn on_cpu(name: &str, model: &Model, x: &[f32], sigma: &[f64], class: &[Option<usize>]) -> Vec<(String, String)> {
    let mut runner = HostRunner::new(model, Threads::ALL).unwrap();
    let mut of = |(index, subnet): (usize, &accordion::supernet::Subnet)| {
        (format!("{name} {}", subnet.name), hash(&runner.denoise_classes(index, x, sigma, class).unwrap()))
    };
    model.subnets().iter().enumerate().map(&mut of).collect()
}

#[test]
fn a_cpu_computes_the_pinned_values() {
    let mut found = Vec::new();
    for name in NAMES {
        let golden = golden(name);
        let ([.., x], sigma, class) = (golden.batch(), golden.sigma(), golden.classes());
        let (model, _) = golden.allocated();
        found.extend(on_cpu(name, &model, &x, &sigma, &class));
    }
    let model = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/fashion-mnist")).unwrap();
    let mut x = vec![0.0; 3 * model.image().elements()];
    Stream::new(1, 2, 3).fill_normals(&mut x);
    found.extend(on_cpu("shipped", &model, &x, &[0.01, 1.0, 70.0], &[Some(9), None, Some(0)]));
    assert_pinned(&found, CPU);
}

#[test]
fn the_emulated_gpu_computes_the_pinned_values() {
    let mut found = Vec::new();
    for name in NAMES {
        let golden = golden(name);
        let ([.., x], sigma, class) = (golden.batch(), golden.sigma(), golden.classes());
        let (model, _) = golden.allocated();
        let x = &x[..model.image().elements()];
        for (precision, subnet) in [(Precision::F32, "0.250"), (Precision::F16, "full")] {
            let machine = Emulated::new(1 << 30, Order::Greedy(Sequence::Forward));
            let mut device = DeviceRunner::new(machine, &model, precision, 16).unwrap();
            let index = model.subnet(subnet).unwrap();
            let values = device.denoise_classes(index, x, &sigma[..1], &class[..1]).unwrap();
            found.push((format!("{name} {subnet} {precision}"), hash(&values)));
        }
    }
    assert_pinned(&found, EMULATED);
}

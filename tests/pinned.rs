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
    ("song_unet_vp_cond 0.250", "66925e18aa7a40c8"),
    ("song_unet_vp_cond 0.500", "cf96c49153336264"),
    ("song_unet_vp_cond 0.750", "c355a63644e94b90"),
    ("song_unet_vp_cond full", "dc0d2db65820366c"),
    ("song_unet_edm_uncond 0.250", "a4b9bbdff081f9b9"),
    ("song_unet_edm_uncond 0.500", "acbdd22c1ad99338"),
    ("song_unet_edm_uncond 0.750", "5935676d0253f105"),
    ("song_unet_edm_uncond full", "7ab79f994e8fe439"),
    ("song_unet_ve_ncsnpp 0.250", "b6ada8d9fc1e51bb"),
    ("song_unet_ve_ncsnpp 0.500", "2262c917bd7a990a"),
    ("song_unet_ve_ncsnpp 0.750", "6d9a20cf1e4bed11"),
    ("song_unet_ve_ncsnpp full", "b2f9658b2e31ecff"),
    ("adm_tiny 0.250", "a1200d976498df33"),
    ("adm_tiny 0.500", "7de663123739e458"),
    ("adm_tiny 0.750", "d3b63d3e6784092d"),
    ("adm_tiny full", "466ae32e5ff0be1a"),
    ("u_vit_uncond 0.250", "7fd75025e6027f63"),
    ("u_vit_uncond 0.500", "c6ae563a1925946b"),
    ("u_vit_uncond 0.750", "e38907d623cfda2c"),
    ("u_vit_uncond full", "a62bd4fb3b7d55fd"),
    ("shipped 0.250", "0f543731a65e92d0"),
    ("shipped 0.375", "f87380da1d3ac12e"),
    ("shipped 0.500", "ff04dfb96772f1d9"),
    ("shipped 0.625", "159a51facf900616"),
    ("shipped 0.750", "9356d28dd7e5aadb"),
    ("shipped 0.875", "a469d60289136a59"),
    ("shipped full", "da1948a7a068a6dc"),
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

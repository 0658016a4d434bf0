//! A model on a machine, from weights to pixels: the CUDA kernels, run on the CPU, against the CPU's own and PyTorch's results.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/emulated.rs"]
mod emulated;
#[path = "support/golden.rs"]
mod golden;

use accordion::nets::{Denoiser, DeviceRunner, Model, Runner, Threads};
use accordion::ops::cuda::Element;
use compare::relative_error;
use emulated::Emulated;
use emulation::{Order, Sequence};
use golden::{NAMES, golden};

const PLENTY: usize = 1 << 30;

fn device(model: &Model, element: Element, order: Order) -> DeviceRunner<Emulated> {
    DeviceRunner::new(Emulated::new(PLENTY, order), model, element, 16).unwrap()
}

#[test]
fn every_subnet_denoises_on_a_device_as_it_does_on_the_cpu() {
    for name in NAMES {
        let golden = golden(name);
        let (x, sigma, classes) = (golden.images("x"), golden.sigma(), golden.classes());
        let (model, _) = golden.allocated();
        let mut cpu = Runner::new(&model, Threads::ALL).unwrap();
        for (element, tolerance) in [(Element::F32, 1e-5), (Element::F16, 4e-3), (Element::Bf16, 3e-2)] {
            let mut device = device(&model, element, Order::Greedy(Sequence::Forward));
            for (subnet, row) in model.subnets().iter().enumerate() {
                let want = cpu.denoise(subnet, &x, &sigma, &classes).unwrap();
                let start = std::time::Instant::now();
                let got = device.denoise(subnet, &x, &sigma, &classes).unwrap();
                let error = relative_error(&got, &want);
                println!("{name} {} {element}: {error:.1e} in {:?}", row.name, start.elapsed());
                assert!(error < tolerance, "{name} {} {element}: {error:.1e}", row.name);
            }
        }
    }
}

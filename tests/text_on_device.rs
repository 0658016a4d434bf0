//! A model that draws texts on a machine with memory of its own, from prompts to pictures: the CUDA kernels against the CPU's own
//! results, which `tests/stable_diffusion.rs` holds against diffusers', and against diffusers' themselves. The machine is the kernels'
//! emulation, or a GPU (`cargo test --release --features cuda --test text_on_device -- --ignored gpu`).

#[path = "support/compare.rs"]
mod compare;
#[path = "support/emulated.rs"]
mod emulated;
#[path = "support/inpainting.rs"]
mod inpainting;
mod support;
#[path = "support/workplace.rs"]
mod workplace;

use accordion::diffusion::preconditioning::Preconditioning;
use accordion::diffusion::{Course, Process};
use accordion::engine::{Engine, Job, Original, Place};
use accordion::nets::{
    Begin, Codec, Condition, Denoiser, DeviceRunner, HostRunner, HostSampler, Model, Move, Rows, Sampler, Slot, Threads,
};
use accordion::ops::cuda::{Accelerator, Precision};
use accordion::philox::NoiseKey;
use accordion::routing::Fixed;
use candle_core::{DType, Device, Tensor};
use compare::relative_error;
use emulated::Emulated;
use emulation::{Order, Sequence};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

const PLENTY: usize = 1 << 30;

fn emulated() -> Emulated {
    Emulated::new(PLENTY, Order::Greedy(Sequence::Forward))
}

/// The tiny pipeline in small sizes; the directory is to outlive it.
fn tiny() -> (TempDir, Model) {
    let dir = tempfile::tempdir().unwrap();
    let [plain, path] = ["plain", "model"].map(|name| dir.path().join(name));
    support::write_text_model(&plain, &["128x128", "32x32", "64x32"]);
    support::rank_decoder(&plain, &path);
    let model = Model::open(&path).unwrap();
    (dir, model)
}

fn expected() -> HashMap<String, Tensor> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/sd_tiny.expected.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn channels_last(tensor: &Tensor) -> Vec<f32> {
    floats(&tensor.permute((0, 2, 3, 1)).unwrap())
}

/// Every subnet in every type against the CPU, and the widest one against diffusers.
fn noise<M: Accelerator>(machine: impl Fn() -> M) {
    let ((_dir, model), expected) = (tiny(), expected());
    // One sample: the emulation takes its time.
    let time = floats(&expected["t"])[0] as usize;
    let sigma = Preconditioning::STABLE_DIFFUSION.steps().nth(time).unwrap();
    let image = model.image();
    let first = |name: &str| channels_last(&expected[name])[..image.elements()].to_vec();
    // The network is given x / sqrt(sigma^2 + 1).
    let x: Vec<f32> = first("latents_xt").iter().map(|value| value * sigma.hypot(1.0) as f32).collect();
    let text = Condition::Text(floats(&expected["context"].get(0).unwrap()).into());
    let rows = Rows { image, x: &x, beside: &[], levels: &[sigma.into()], conditions: &[text] };
    let mut cpu = HostRunner::new(&model, Threads::ALL).unwrap();
    for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::F16, 5e-3), (Precision::Bf16, 4e-2)] {
        let mut device = DeviceRunner::new(machine(), &model, precision, 4).unwrap();
        for (subnet, of) in model.subnets().iter().enumerate() {
            let got = device.denoise(subnet, &rows).unwrap();
            let error = relative_error(&got, &cpu.denoise(subnet, &rows).unwrap());
            println!("{} {precision}: {error:.1e}", of.name);
            assert!(error < tolerance, "{} {precision}: {error:.1e}", of.name);
            if &*of.name == "full" && precision == Precision::F32 {
                let predicted: Vec<f32> = got.iter().zip(&x).map(|(d, x)| (x - d) / sigma as f32).collect();
                let error = relative_error(&predicted, &first("eps_full"));
                println!("against diffusers: {error:.1e}");
                assert!(error < tolerance, "against diffusers: {error:.1e}");
            }
        }
    }
}

#[test]
fn noise_is_predicted_on_a_device_as_on_the_cpu_and_as_diffusers_does() {
    noise(emulated);
}

fn engine(model: &Model, sampler: Box<dyn Sampler>) -> Engine {
    let policy = Box::new(Fixed::unmeasured(model.subnets(), 4));
    Engine::start(sampler, Place::alone(64).unwrap(), policy).unwrap()
}

/// Pictures of two small sizes, drawn together: every solver, several widths, guidance away from nothing and from a text.
fn jobs(model: &Model) -> Vec<Job> {
    let contexts = model.contexts().unwrap().unwrap();
    let of = |prompt: &str| Condition::Text(contexts.of(prompt).unwrap().values.clone());
    let job = |plan: &str, seed, prompt: &str| Job {
        condition: of(prompt),
        canvas: 1,
        ..Job::exact(Arc::new(plan.parse().unwrap()), seed)
    };
    let guided = |scale, from: &str, job: Job| Job { guidance: scale, negative: of(from), ..job };
    vec![
        guided(7.5, "", job("pndm-5@0.500*3,full*2", 5, "a red bicycle")),
        guided(3.0, "blurry", Job { canvas: 2, ..job("dpmpp2m-2@0.250~karras", 6, "a cat") }),
        Job { images: 2, ..job("euler-1@0.250", 7, "a red bicycle") },
        job("euler-1@0.250~decode=0.250", 7, "a red bicycle"),
        // From a picture at its noise level, a part of which is known.
        Job { original: Some(original().into()), strength: 0.5, ..job("ddim-4@0.250~strength=0.5", 8, "a cat") },
    ]
}

/// A picture of 32 x 32, the left half of which is drawn anew.
fn original() -> Original {
    let bytes = (0..32 * 32 * 3).map(|at: usize| (at % 96 * 2 + at / 96) as u8).collect();
    Original { bytes, mask: Some((0..32 * 32).map(|pixel| pixel % 32 < 16).collect()) }
}

fn draw(engine: &Engine, jobs: &[Job]) -> Vec<Vec<u8>> {
    let tickets: Vec<_> = jobs.iter().map(|job| engine.submit(job.clone()).unwrap()).collect();
    tickets.into_iter().flat_map(|ticket| ticket.blocking_wait().unwrap().images).collect()
}

fn pictures<M: Accelerator + 'static>(machine: impl Fn() -> M) {
    let (_dir, model) = tiny();
    let jobs = jobs(&model);
    // The emulation takes its time: the first job is the longest.
    compare_pictures(
        &model,
        &machine,
        &jobs,
        &[(Precision::F32, 0, 1), (Precision::F16, 1, 8), (Precision::Bf16, 1, 40)],
    );
}

/// A network for inpainting, which is given a mask and a picture, or neither.
fn painted<M: Accelerator + 'static>(machine: impl Fn() -> M) {
    let work = workplace::Workplace::new();
    workplace::copy(&workplace::fixture("sd_tiny"), &work.path("sd"));
    inpainting::widen(&work.path("sd"), &inpainting::golden());
    assert!(work.run(&["import", "sd", "--out", "model"]).status.success());
    let card = work.path("model/model.toml");
    let small = std::fs::read_to_string(&card).unwrap().replace(r#"["128x128"]"#, r#"["32x32"]"#);
    std::fs::write(card, small).unwrap();
    let model = Model::open(&work.path("model")).unwrap();
    let condition = Condition::Text(model.contexts().unwrap().unwrap().of("a cat").unwrap().values.clone());
    let job = |plan: &str| Job { condition: condition.clone(), ..Job::exact(Arc::new(plan.parse().unwrap()), 9) };
    let original = Some(Arc::new(original()));
    let jobs = [
        Job { original: original.clone(), strength: 0.5, ..job("ddim-4@full~strength=0.5") },
        Job { original, ..job("euler-1@full") },
        job("euler-1@full"),
    ];
    compare_pictures(&model, &machine, &jobs, &[(Precision::F32, 0, 1), (Precision::F16, 0, 8)]);
}

/// Draws from the job at an index on, in a type, with so many grey levels between the device and the CPU at most.
fn compare_pictures<M: Accelerator + 'static>(
    model: &Model,
    machine: &impl Fn() -> M,
    jobs: &[Job],
    cases: &[(Precision, usize, u8)],
) {
    let cpu = HostSampler::new(Box::new(HostRunner::new(model, Threads::new(1)).unwrap()));
    let cpu = cpu.with_codec(Codec::of(model, Threads::new(1)).unwrap());
    let want = draw(&engine(model, Box::new(cpu)), jobs);
    for &(precision, first, most) in cases {
        let device = DeviceRunner::new(machine(), model, precision, 4).unwrap();
        let (got, want) = (draw(&engine(model, Box::new(device)), &jobs[first..]), &want[first..]);
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), want.iter().map(Vec::len).collect::<Vec<_>>());
        let apart: Vec<u8> = got.iter().flatten().zip(want.iter().flatten()).map(|(a, b)| a.abs_diff(*b)).collect();
        let (largest, other) = (apart.iter().max().unwrap(), apart.iter().filter(|&&levels| levels > 0).count());
        println!("{precision}: {largest} grey levels, {other} of {} values are another", apart.len());
        assert!(*largest <= most, "{precision}: {largest} grey levels");
        if precision == Precision::F32 {
            assert!(other * 500 < apart.len(), "{other} of {} values are another level", apart.len());
        }
    }
}

#[test]
fn a_prompt_gives_the_same_picture_on_each_device() {
    pictures(emulated);
}

#[test]
fn a_network_for_inpainting_paints_the_same_on_each_device() {
    painted(emulated);
}

/// One step to the denoised image, which is then seen by [`Sampler::estimate`] too.
fn step(sampler: &mut dyn Sampler, process: Process, canvas: usize, text: &Condition) -> Slot {
    let mut course = Course::new(Arc::new("euler-1@0.250".parse().unwrap()), process);
    let level = course.next_call().unwrap().level;
    let begin = Begin { canvas, ..Begin::new(NoiseKey { seed: 3, image: 0 }, &course) };
    let slot = sampler.begin(&begin).unwrap();
    let (condition, update) = (text.clone(), course.advance());
    sampler.step(0, &[Move { slot, level, condition, guide: None, update, next: None, watched: true }]).unwrap();
    slot
}

#[test]
fn previews_are_the_cpu_s() {
    let (_dir, model) = tiny();
    let text = Condition::Text(model.contexts().unwrap().unwrap().of("a cat").unwrap().values.clone());
    let cpu = HostSampler::new(Box::new(HostRunner::new(&model, Threads::new(1)).unwrap()));
    let cpu = cpu.with_codec(Codec::of(&model, Threads::new(1)).unwrap());
    let device = DeviceRunner::new(emulated(), &model, Precision::F32, 2).unwrap();
    let samplers: [Box<dyn Sampler>; 2] = [Box::new(cpu), Box::new(device)];
    let [want, got] = samplers.map(|mut sampler| {
        let slot = step(&mut *sampler, model.card.process(), 2, &text);
        sampler.estimate(slot).unwrap()
    });
    assert_eq!(want.len(), 64 * 32 * 3);
    assert!(got.iter().zip(&want).all(|(a, b)| a.abs_diff(*b) <= 1));
}

#[test]
fn texts_stay_until_their_places_are_wanted_and_none_is_mixed_up() {
    let (_dir, model) = tiny();
    let contexts = model.contexts().unwrap().unwrap();
    let prompts = ["a cat", "a dog", "a red bicycle", "", "blurry", "a house"];
    let text = |prompt: &&str| Condition::Text(contexts.of(prompt).unwrap().values.clone());
    let texts: Vec<Condition> = prompts.iter().map(text).collect();
    let machine = emulated();
    let limits = machine.limits();
    // Room for four.
    let mut runner = DeviceRunner::new(machine, &model, Precision::F16, 2).unwrap();
    let mut uploaded = limits.lock().unwrap().uploaded;
    let mut draw = |text: &Condition| {
        let slot = step(&mut runner, model.card.process(), 1, text);
        let now = limits.lock().unwrap().uploaded;
        let bytes = now - std::mem::replace(&mut uploaded, now);
        let estimate = runner.estimate(slot).unwrap();
        runner.end(slot);
        (estimate, bytes)
    };
    let first: Vec<_> = texts.iter().map(&mut draw).collect();
    let distinct: HashSet<&Vec<u8>> = first.iter().map(|(estimate, _)| estimate).collect();
    assert!(distinct.len() > 1, "texts make a difference");
    // Those of the last four places are there; then the first two, which are not any more.
    for index in [5, 4, 3, 2, 0, 1] {
        let (estimate, bytes) = draw(&texts[index]);
        assert_eq!(estimate, first[index].0, "{}", prompts[index]);
        let text = if index < 2 { 77 * 40 * 2 } else { 0 };
        assert_eq!(bytes, first[0].1 - 77 * 40 * 2 + text, "bytes told for {}", prompts[index]);
    }
}

#[test]
fn a_machine_without_the_memory_for_all_parts_is_refused_with_both_numbers() {
    let (_dir, model) = tiny();
    let machine = emulated();
    let limits = machine.limits();
    let runner = DeviceRunner::new(machine, &model, Precision::F16, 2).unwrap();
    let taken = PLENTY - limits.lock().unwrap().free;
    assert_eq!(taken, Denoiser::about(&runner).weight_bytes + Denoiser::activation_bytes(&runner));
    let small = Emulated::new(taken - 1, Order::Greedy(Sequence::Forward));
    let limits = small.limits();
    let message = DeviceRunner::new(small, &model, Precision::F16, 2).unwrap_err().to_string();
    assert_eq!(message, format!("GPU memory: {taken} bytes are needed and {} are free", taken - 1));
    assert_eq!(limits.lock().unwrap().free, taken - 1, "nothing was allocated");
}

/// For whoever has a GPU.
#[cfg(feature = "cuda")]
mod gpu {
    use super::*;
    use accordion::ops::cuda::gpu::Gpu;

    fn open() -> Gpu {
        Gpu::open(0).unwrap()
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn gpu_noise_is_predicted_as_on_the_cpu() {
        noise(open);
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn gpu_a_prompt_gives_the_same_picture() {
        pictures(open);
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn gpu_a_network_for_inpainting_paints_the_same() {
        super::painted(open);
    }
}

//! A model on a machine, from weights to pixels: the CUDA kernels against the CPU's own results, which `tests/goldens.rs` holds
//! against PyTorch's. The machine is the kernels' emulation, or a GPU
//! (`cargo test --release --features cuda --test device -- --ignored gpu`).

#[path = "support/compare.rs"]
mod compare;
#[path = "support/emulated.rs"]
mod emulated;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/random.rs"]
mod random;
mod support;

use accordion::diffusion::{Course, Update};
use accordion::engine::{Engine, EngineError, Job, Place};
use accordion::evaluation::latency::{self, Pace};
use accordion::nets::device_runner::Blueprint;
use accordion::nets::{
    Begin, Condition, Denoiser, DeviceRunner, HostRunner, HostSampler, Model, Move, Sampler, Slot, Threads,
};
use accordion::ops::cuda::{Accelerator, Precision};
use accordion::philox::NoiseKey;
use accordion::routing::Fixed;
use accordion::supernet::bytes_as_copies;
use compare::relative_error;
use emulated::Emulated;
use emulation::{Order, Sequence};
use golden::{NAMES, golden};
use proptest::prelude::*;
use random::shapes;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PLENTY: usize = 1 << 30;

fn device(model: &Model, precision: Precision, order: Order) -> DeviceRunner<Emulated> {
    DeviceRunner::new(Emulated::new(PLENTY, order), model, precision, 16).unwrap()
}

/// Every network in every type against the CPU, on new machines.
fn every_network<M: Accelerator>(machine: impl Fn() -> M) {
    for name in NAMES {
        let golden = golden(name);
        let ([.., x], sigma, classes) = (golden.batch(), golden.sigma(), golden.classes());
        let (model, _) = golden.allocated();
        // One sample: the emulation takes its time.
        let (x, sigma, classes) = (&x[..model.image().elements()], &sigma[..1], &classes[..1]);
        let mut cpu = HostRunner::new(&model, Threads::ALL).unwrap();
        // Networks are of every kind of layer; the narrowest subnet has the oddest widths.
        for (precision, subnets, tolerance) in [
            (Precision::F32, &["0.250", "full"][..], 1e-5),
            (Precision::F16, &["0.250"], 4e-3),
            (Precision::Bf16, &["0.250"], 3e-2),
        ] {
            let mut device = DeviceRunner::new(machine(), &model, precision, 16).unwrap();
            for subnet in subnets {
                let index = model.subnet(subnet).unwrap();
                let want = cpu.denoise_classes(index, x, sigma, classes).unwrap();
                let error = relative_error(&device.denoise_classes(index, x, sigma, classes).unwrap(), &want);
                println!("{name} {subnet} {precision}: {error:.1e}");
                assert!(error < tolerance, "{name} {subnet} {precision}: {error:.1e}");
            }
        }
    }
}

#[test]
fn every_network_denoises_on_a_device_as_it_does_on_the_cpu() {
    every_network(|| Emulated::new(PLENTY, Order::Greedy(Sequence::Forward)));
}

proptest! {
    // The emulation takes its time.
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn a_network_of_any_shape_denoises_on_a_device_as_it_does_on_the_cpu(shape in shapes(), eights in 1usize..=2) {
        let shape = shape.of_channels(8 * eights);
        let model = shape.allocated(accordion::supernet::Order::Global);
        let (x, sigma, classes) = shape.batch(&model);
        let mut cpu = HostRunner::new(&model, Threads::ALL).unwrap();
        let mut device = device(&model, Precision::F32, Order::Greedy(Sequence::Forward));
        for subnet in 0..model.subnets().len() {
            let want = cpu.denoise_classes(subnet, &x, &sigma, &classes).unwrap();
            let error = relative_error(&device.denoise_classes(subnet, &x, &sigma, &classes).unwrap(), &want);
            prop_assert!(error < 1e-5, "subnet {subnet}: {error:.1e}");
        }
    }
}

/// The shipped model: 28x28 grey images of ten classes.
fn shipped() -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/fashion-mnist").as_path()).unwrap()
}

/// The tiny model of the other tests, with classes.
fn tiny() -> Model {
    let dir = tempfile::tempdir().unwrap();
    support::write_model(dir.path(), &support::CLASSES);
    Model::open(dir.path()).unwrap()
}

fn engine(model: &Model, sampler: Box<dyn Sampler>, most: usize) -> Engine {
    let policy = Box::new(Fixed::unmeasured(model.subnets(), most));
    Engine::start(sampler, Place::alone(64).unwrap(), policy).unwrap()
}

/// The images of some jobs that are drawn together.
fn draw(engine: &Engine, jobs: &[Job]) -> Vec<Vec<u8>> {
    let tickets: Vec<_> = jobs.iter().map(|job| engine.submit(job.clone()).unwrap()).collect();
    tickets.into_iter().flat_map(|ticket| ticket.blocking_wait().unwrap().images).collect()
}

/// The largest difference of two sets of images, in grey levels.
fn distance(a: &[Vec<u8>], b: &[Vec<u8>]) -> u8 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b).flat_map(|(a, b)| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b)
    });
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// Every solver, churn, guidance, several images, a change of width.
fn jobs() -> Vec<Job> {
    let job = |plan: &str, seed| Job::exact(Arc::new(plan.parse().unwrap()), seed);
    vec![
        Job { images: 2, condition: Condition::Class(1), ..job("dpmpp2m-4@full", 5) },
        Job { condition: Condition::Class(0), guidance: 2.5, ..job("heun-3@full", 6) },
        job("euler-3@0.500", 7),
        Job { condition: Condition::Class(1), ..job("heun-3@0.250*1,full*2~churn=2", 8) },
        Job { condition: Condition::Class(0), guidance: 2.5, ..job("dpmpp2m-3@full^0.500", 9) },
        Job { condition: Condition::Class(1), images: 2, ..job("euler-3@0.500*1,full*2^auto:0.250", 10) },
    ]
}

#[test]
fn a_seed_gives_the_same_image_on_each_device() {
    let model = tiny();
    let cpu = HostSampler::new(Box::new(HostRunner::new(&model, Threads::new(1)).unwrap()));
    let want = draw(&engine(&model, Box::new(cpu), 16), &jobs());
    for (precision, levels) in [(Precision::F32, 1), (Precision::F16, 3), (Precision::Bf16, 20)] {
        let on_device = engine(&model, Box::new(device(&model, precision, Order::Greedy(Sequence::Shuffled(3)))), 16);
        let got = draw(&on_device, &jobs());
        println!("{precision}: {} grey levels", distance(&got, &want));
        // Half a level off is another byte where the value lies between two.
        assert!(distance(&got, &want) <= levels, "{precision}: {} grey levels", distance(&got, &want));
        if precision == Precision::F32 {
            let values = got.iter().flatten().zip(want.iter().flatten());
            let other = values.filter(|(a, b)| a != b).count() as f64 / (5.0 * 64.0);
            assert!(other < 0.01, "{:.1} % of the bytes differ", 100.0 * other);
        }
    }
}

/// The shipped model's images, by width schedule, on new machines and on the CPU.
fn shipped_images<M: Accelerator + 'static>(machine: impl Fn() -> M) {
    let model = shipped();
    let job = |class| Job {
        condition: Condition::Class(class),
        ..Job::exact(Arc::new("dpmpp2m-2@0.250*1,0.500*1".parse().unwrap()), 11)
    };
    let jobs = [job(7)];
    let cpu = HostSampler::new(Box::new(HostRunner::new(&model, Threads::ALL).unwrap()));
    let want = draw(&engine(&model, Box::new(cpu), 16), &jobs);
    for (precision, levels) in [(Precision::F32, 1), (Precision::F16, 4)] {
        let on_device = engine(&model, Box::new(DeviceRunner::new(machine(), &model, precision, 16).unwrap()), 16);
        let got = draw(&on_device, &jobs);
        println!("{precision}: {} grey levels", distance(&got, &want));
        assert!(distance(&got, &want) <= levels, "{precision}: {} grey levels", distance(&got, &want));
    }
}

#[test]
fn the_shipped_model_draws_the_same_on_each_device() {
    shipped_images(|| Emulated::new(PLENTY, Order::Greedy(Sequence::Forward)));
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
    fn gpu_every_network_denoises_as_it_does_on_the_cpu() {
        every_network(open);
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn gpu_the_shipped_model_draws_the_same() {
        shipped_images(open);
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn gpu_a_sample_s_bits_do_not_depend_on_its_batch() {
        let model = tiny();
        for precision in Precision::ALL {
            let engine =
                |most| engine(&model, Box::new(DeviceRunner::new(open(), &model, precision, most).unwrap()), most);
            let job = |seed| Job {
                condition: Condition::Class(1),
                ..Job::exact(Arc::new("dpmpp2m-4@full".parse().unwrap()), seed)
            };
            let jobs: Vec<Job> = (0..12).map(job).collect();
            let together = draw(&engine(16), &jobs);
            let alone = engine(2);
            let one_by_one: Vec<_> = jobs.iter().flat_map(|job| draw(&alone, std::slice::from_ref(job))).collect();
            assert_eq!(together, one_by_one, "{precision}");
        }
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn gpu_too_many_samples_are_refused_with_both_numbers() {
        let error = DeviceRunner::new(open(), &shipped(), Precision::F32, 65_535).unwrap_err().to_string();
        assert!(
            error.starts_with("GPU memory: ") && error.contains("bytes are needed and") && error.ends_with("are free"),
            "{error}"
        );
    }
}

#[test]
fn a_machine_without_the_memory_is_refused_with_both_numbers_and_keeps_nothing() {
    let model = tiny();
    let machine = Emulated::new(100_000, Order::Greedy(Sequence::Forward));
    let limits = machine.limits();
    let message = DeviceRunner::new(machine, &model, Precision::F32, 16).unwrap_err().to_string();
    let [needed, free] = [PLENTY, 100_000];
    let whole = Emulated::new(needed, Order::Greedy(Sequence::Forward));
    let whole_limits = whole.limits();
    let refused = DeviceRunner::new(Emulated::new(0, Order::Greedy(Sequence::Forward)), &model, Precision::F32, 65_536);
    let says = "max_batch: 65536 is not accepted on a GPU: it must be at most 65535";
    assert_eq!(refused.unwrap_err().to_string(), says);
    let runner = DeviceRunner::new(whole, &model, Precision::F32, 16).unwrap();
    let taken = PLENTY - whole_limits.lock().unwrap().free;
    assert_eq!(
        taken,
        Denoiser::about(&runner).weight_bytes + Denoiser::activation_bytes(&runner),
        "what it says it takes"
    );
    assert_eq!(message, format!("GPU memory: {taken} bytes are needed and {free} are free"));
    assert_eq!(limits.lock().unwrap().free, free, "nothing was allocated");
}

#[test]
fn a_call_that_the_memory_does_not_hold_is_made_in_pieces() {
    let model = tiny();
    let machine = Emulated::new(PLENTY, Order::Greedy(Sequence::Forward));
    let limits = machine.limits();
    limits.lock().unwrap().samples = 3;
    let runner = DeviceRunner::new(machine, &model, Precision::F32, 16).unwrap();
    let engine = engine(&model, Box::new(runner), 16);
    let mut many = jobs();
    many[0].images = 8;
    let got = draw(&engine, &many);
    let roomy = Box::new(device(&model, Precision::F32, Order::Greedy(Sequence::Forward)));
    assert_eq!(got, draw(&self::engine(&model, roomy, 16), &many), "the same bits in pieces");
    // Nothing at all fits: the requests fail, the engine goes on.
    limits.lock().unwrap().samples = 0;
    let job = Job { condition: Condition::Class(0), ..Job::exact(Arc::new("euler-2@0.750".parse().unwrap()), 1) };
    let error = engine.submit(job).unwrap().blocking_wait().unwrap_err().to_string();
    assert!(error.contains("GPU memory"), "{error}");
    limits.lock().unwrap().samples = 16;
    assert_eq!(draw(&engine, &many[1..2]), got[8..9]);
    assert!(engine.is_alive());
}

#[test]
fn more_images_than_a_page_holds_take_another_and_none_is_mixed_up() {
    let model = tiny();
    let machine = Emulated::new(PLENTY, Order::InStep(Sequence::Reverse));
    let limits = machine.limits();
    let mut runner = DeviceRunner::new(machine, &model, Precision::F32, 4).unwrap();
    let before = limits.lock().unwrap().free;
    let course = Course::new(Arc::new("euler-1@full".parse().unwrap()), model.card.process());
    let level = course.next_call().unwrap().level;
    let key = |image| NoiseKey { seed: 4, image };
    let slots: Vec<_> = (0..20).map(|image| runner.begin(&Begin::new(key(image), &course)).unwrap()).collect();
    assert!(limits.lock().unwrap().free < before, "a second page");
    runner.end(slots[3]);
    let update = course.clone().advance();
    for part in slots.chunks(7) {
        let of = |&slot: &Slot| Move {
            slot,
            level,
            condition: Condition::None,
            guide: None,
            update,
            next: None,
            watched: true,
        };
        let moves: Vec<_> = part.iter().filter(|slot| **slot != slots[3]).map(of).collect();
        runner.step(3, &moves).unwrap();
    }
    let alone = |image| {
        let mut runner = device(&model, Precision::F32, Order::Greedy(Sequence::Forward));
        let slot = runner.begin(&Begin::new(key(image), &course)).unwrap();
        let step = Move { slot, level, condition: Condition::None, guide: None, update, next: None, watched: false };
        runner.step(3, &[step]).unwrap();
        runner.pixels(slot, 0).unwrap()
    };
    for image in [0, 2, 4, 19] {
        let slot = slots[image as usize];
        assert_eq!(runner.pixels(slot, 0).unwrap(), alone(image), "image {image}");
        // Euler's only step ends at the denoised image.
        assert_eq!(runner.estimate(slot).unwrap(), runner.pixels(slot, 0).unwrap());
    }
    slots.iter().filter(|slot| **slot != slots[3]).for_each(|&slot| runner.end(slot));
    let free = limits.lock().unwrap().free;
    (0..32).for_each(|image| {
        runner.begin(&Begin::new(key(image), &course)).unwrap();
    });
    assert_eq!(limits.lock().unwrap().free, free, "ended slots are taken again");
}

#[test]
fn damaged_weights_fail_the_step_and_nothing_else() {
    let model = tiny();
    let mut runner = device(&model, Precision::F32, Order::Greedy(Sequence::Forward));
    let course = Course::new(Arc::new("euler-2@full".parse().unwrap()), model.card.process());
    let level = course.next_call().unwrap().level;
    let update = Update { a_x: f64::NAN, ..course.clone().advance() };
    let slot = runner.begin(&Begin::new(NoiseKey { seed: 1, image: 0 }, &course)).unwrap();
    let other = runner.begin(&Begin::new(NoiseKey { seed: 2, image: 0 }, &course)).unwrap();
    let step = |slot, update| Move {
        slot,
        level,
        condition: Condition::None,
        guide: None,
        update,
        next: Some(level),
        watched: false,
    };
    // The image is no number after this step, so the next one's denoised image is none.
    runner.step(0, &[step(slot, update)]).unwrap();
    let sane = course.clone().advance();
    let error = runner.step(0, &[step(slot, sane), step(other, sane)]).unwrap_err().to_string();
    assert_eq!(error, "it returned values that are not finite");
    assert!(!runner.is_lost());
    runner.step(0, &[step(other, sane)]).unwrap();
    // The next image in the same memory finds nothing of it.
    runner.end(slot);
    let next = runner.begin(&Begin::new(NoiseKey { seed: 3, image: 0 }, &course)).unwrap();
    assert_eq!(next, slot);
    runner.step(0, &[step(next, sane)]).unwrap();
}

#[test]
fn an_engine_whose_device_is_lost_is_dead() {
    let model = tiny();
    let machine = Emulated::new(PLENTY, Order::Greedy(Sequence::Forward));
    let limits = machine.limits();
    let engine = engine(&model, Box::new(DeviceRunner::new(machine, &model, Precision::F16, 4).unwrap()), 4);
    assert_eq!(draw(&engine, &jobs()[2..3]).len(), 1);
    limits.lock().unwrap().broken = true;
    let error = engine.submit(jobs()[2].clone()).unwrap().blocking_wait().unwrap_err().to_string();
    assert!(error.contains("the GPU has fallen off the bus"), "{error}");
    // Liveness tells, so that a new process may get the device back.
    assert_eq!(engine.join(), Err(EngineError::Dead));
    assert!(!engine.is_alive());
}

#[test]
fn a_step_of_every_subnet_can_be_timed_and_the_calls_are_those_of_the_engine() {
    let model = tiny();
    let machine = Emulated::new(PLENTY, Order::Greedy(Sequence::Forward));
    let limits = machine.limits();
    let mut runner = DeviceRunner::new(machine, &model, Precision::Bf16, 4).unwrap();
    let before = limits.lock().unwrap().launches;
    let uploaded = limits.lock().unwrap().uploaded;
    assert!(uploaded >= Denoiser::about(&runner).weight_bytes, "the weights, once");
    let pace = Pace { time: Duration::ZERO, rounds: 1 };
    let ms = latency::of_calls(&mut runner, &[(0, 1), (3, 4)], pace, &mut |_| {}).unwrap();
    assert!(ms.len() == 2 && ms.iter().all(|&ms| ms > 0.0));
    // Two calls of each; the noise of all images once.
    let blueprint = Blueprint::new(&model, model.supernet.clone(), Precision::Bf16, 4).unwrap();
    let of = |subnet: usize, batch| blueprint.step(subnet, batch).len();
    assert_eq!(limits.lock().unwrap().launches - before, 1 + 2 * of(0, 1) + 2 * of(3, 4));
    // A call is told little: the weights stay where they are.
    let told = limits.lock().unwrap().uploaded - uploaded;
    assert!(told < Denoiser::about(&runner).weight_bytes / 4, "{told} bytes were uploaded for four calls");
    assert_eq!(accordion::evaluation::profile::Device::of(&runner).instruction_set, "cuda bf16");
}

#[test]
fn all_subnets_share_one_copy_of_the_weights() {
    let model = shipped();
    let runner = device(&model, Precision::F16, Order::Greedy(Sequence::Forward));
    let one = Denoiser::about(&runner).weight_bytes;
    let widest = shipped().with_subnets("channels", vec![]).unwrap();
    let alone = device(&widest, Precision::F16, Order::Greedy(Sequence::Forward));
    let tables = one - Denoiser::about(&alone).weight_bytes;
    // More subnets take their tables of groups.
    assert!(tables * 20 < one, "{tables} of {one} bytes");
    // As networks of their own they would take about what the metric says: layers are filled up to multiples of 8 channels.
    let extracted = (0..model.subnets().len()).map(|subnet| {
        let runner = device(&model.extract(subnet).unwrap(), Precision::F16, Order::Greedy(Sequence::Forward));
        Denoiser::about(&runner).weight_bytes
    });
    let (copies, said) = (extracted.sum::<usize>() as f64, bytes_as_copies(model.subnets(), one) as f64);
    println!("one copy {one} bytes, {copies} as networks of their own, said to be {said}");
    assert!((copies / said - 1.0).abs() < 0.1, "{copies} bytes, said to be {said}");
}

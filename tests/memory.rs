//! What a runner allocates, counted by the allocator.
#![allow(unsafe_code, reason = "an allocator is")]

use accordion::diffusion::preconditioning::Preconditioning;
use accordion::nets::model::Card;
use accordion::nets::song_unet::{Config, Decoder, EmbeddingType, Encoder};
use accordion::nets::{Backbone, Network};
use accordion::nets::{Denoiser, HostRunner, Model, Threads};
use accordion::philox::Stream;
use accordion::supernet::{Pipe, Spec, Subnet, Widths};
use accordion::training::trainer::initial;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The system's allocator, counting.
struct Counting;

/// Bytes that are allocated now.
static LIVE: AtomicIsize = AtomicIsize::new(0);
/// Allocations so far, their bytes, and the bytes of the largest.
static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

fn count(size: usize) {
    LIVE.fetch_add(size as isize, Relaxed);
    CALLS.fetch_add(1, Relaxed);
    BYTES.fetch_add(size, Relaxed);
    LARGEST.fetch_max(size, Relaxed);
}

// SAFETY: every call is the system's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `test` while no other one runs, on a thread of its own: what a thread keeps is gone with it.
fn alone(test: impl FnOnce() + Send + 'static) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(panic) = std::thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

/// DDPM++ with random weights, 64 channels at 16x16, and this many subnets: random nested ones, and the full one.
fn model(subnets: usize) -> Model {
    let config = Config {
        img_resolution: 16,
        img_channels: 3,
        label_dim: 10,
        model_channels: 64,
        channel_mult: vec![1, 2, 2],
        num_blocks: 1,
        attn_resolutions: vec![8],
        dropout: 0.0,
        augment_dim: 0,
        embedding_type: EmbeddingType::Positional,
        encoder_type: Encoder::Standard,
        decoder_type: Decoder::Standard,
        channel_mult_noise: 1,
        channel_mult_emb: 4,
        resample_filter: vec![1.0, 1.0],
        pipe_widths: Default::default(),
    };
    let backbone = Backbone::SongUnet(config);
    let preconditioning = Preconditioning::Edm { sigma_data: 0.5 };
    let network = Network::new(&backbone, preconditioning).unwrap();
    let spec = network.spec();
    let widths = nested(spec, subnets - 1);
    let row = |(i, widths): (usize, &Widths)| Subnet::new(spec, (i + 1) as f64 / subnets as f64, widths);
    let rows = widths.iter().enumerate().map(row).collect();
    let card = Card::new("random".into(), backbone, preconditioning, vec![]);
    let supernet = initial(spec, 1).unwrap();
    Model::unallocated(card, supernet).unwrap().with_subnets("channels", rows).unwrap()
}

/// This many random tables of widths, each of which nests in the next.
fn nested(spec: &Spec, count: usize) -> Vec<Widths> {
    let of_pipe = |(index, pipe): (usize, &Pipe)| {
        let stream = Stream::new(1, 1, index as u64);
        let mut drawn: Vec<usize> =
            (0..count as u64).map(|i| 1 + stream.below(i, pipe.width as u32) as usize).collect();
        drawn.sort_unstable();
        drawn
    };
    let drawn: Vec<Vec<usize>> = spec.pipes.iter().enumerate().map(of_pipe).collect();
    (0..count).map(|i| Widths(drawn.iter().map(|drawn| drawn[i]).collect())).collect()
}

/// A runner of this many subnets, and the bytes that are allocated for it once its model is gone.
fn runner(subnets: usize, threads: usize) -> (HostRunner, usize) {
    let before = LIVE.load(Relaxed);
    let model = model(subnets);
    let runner = HostRunner::new(&model, Threads::new(threads)).unwrap();
    drop(model);
    let kept = LIVE.load(Relaxed) - before;
    (runner, usize::try_from(kept).unwrap())
}

#[test]
fn thirty_one_subnets_take_hardly_more_memory_than_one() {
    alone(|| {
        // What the process allocates once, such as the threads that pack the weights, is nobody's.
        drop(runner(2, 1));
        let mut bytes = [0; 2];
        for (bytes, subnets) in bytes.iter_mut().zip([1, 31]) {
            let (runner, counted) = runner(subnets, 1);
            assert_eq!(runner.about().subnets.len(), subnets);
            let told = runner.about().weight_bytes;
            println!("{subnets} subnets: {counted} bytes counted, {told} told");
            let error = (told as f64 / counted as f64 - 1.0).abs();
            assert!(error <= 0.01, "{subnets} subnets: {told} bytes told, {counted} counted");
            *bytes = counted;
        }
        let [one, many] = bytes;
        assert!(many as f64 <= 1.02 * one as f64, "{many} bytes for 31 subnets, {one} for one");
    });
}

/// What a call allocated.
struct Spent {
    allocations: usize,
    bytes: usize,
    largest: usize,
    /// Bytes that are still allocated.
    kept: isize,
}

/// A call of the runner on a batch of this size; its result is dropped.
fn spent(runner: &mut HostRunner, subnet: usize, batch: usize) -> Spent {
    let x = vec![0.5; batch * runner.about().state().elements()];
    let (sigma, class) = (vec![1.0; batch], vec![Some(1); batch]);
    let before = (CALLS.load(Relaxed), BYTES.load(Relaxed), LIVE.load(Relaxed));
    LARGEST.store(0, Relaxed);
    runner.denoise_classes(subnet, &x, &sigma, &class).unwrap();
    Spent {
        allocations: CALLS.load(Relaxed) - before.0,
        bytes: BYTES.load(Relaxed) - before.1,
        largest: LARGEST.load(Relaxed),
        kept: LIVE.load(Relaxed) - before.2,
    }
}

#[test]
fn once_every_subnet_has_run_a_batch_size_a_call_allocates_its_result_and_a_few_short_lists() {
    alone(|| {
        let (mut runner, _) = runner(31, 1);
        let elements = runner.about().state().elements();
        for batch in [1, 3, 8, 1] {
            // Every subnet once: each leaves the buffers of its sizes.
            for subnet in (0..31).rev() {
                spent(&mut runner, subnet, batch);
            }
            let result = batch * elements * size_of::<f32>();
            let (mut most, mut rest) = (0, 0);
            for subnet in (0..31).rev().chain([30, 0]) {
                let Spent { allocations, bytes, largest, kept } = spent(&mut runner, subnet, batch);
                let place = format!("subnet {subnet}, batch of {batch}");
                assert_eq!(kept, 0, "{place}: bytes are left");
                assert_eq!(largest, result, "{place}: the largest is not the result");
                (most, rest) = (most.max(allocations), rest.max(bytes - result));
            }
            println!("batch of {batch}: {most} allocations, {rest} bytes beside the result");
            // The samples' coefficients, noise levels and labels, the layers' outputs and the skips: no activation.
            assert!(most <= 12 && rest <= 2048 + 128 * batch, "batch of {batch}: {most} allocations, {rest} bytes");
        }
    });
}

#[test]
fn on_several_threads_later_calls_add_nothing_but_scratch_that_a_thread_lacks() {
    alone(|| {
        const BATCH: usize = 2;
        // What one thread keeps beside the buffers of activations.
        let (mut runner_of_one, _) = runner(31, 1);
        let scratch = spent(&mut runner_of_one, 30, BATCH).kept - runner_of_one.activation_bytes() as isize;
        drop(runner_of_one);
        for threads in [2, 3] {
            let (mut runner, _) = runner(31, threads);
            let first: isize = (0..31).rev().map(|subnet| spent(&mut runner, subnet, BATCH).kept).sum();
            let buffers = runner.activation_bytes();
            let later: isize = (0..62).map(|call| spent(&mut runner, call % 31, BATCH).kept).sum();
            println!(
                "{threads} threads: {buffers} bytes of buffers, {} of scratch, {later} of them late",
                first + later - buffers as isize
            );
            assert_eq!(runner.activation_bytes(), buffers, "{threads} threads: activations grow");
            // A thread meets its largest task when it does, and scratch that grows may become twice as large as needed.
            let most = buffers as isize + 2 * scratch * threads as isize;
            assert!(first + later <= most, "{threads} threads keep {} bytes, not {most}", first + later);
        }
    });
}

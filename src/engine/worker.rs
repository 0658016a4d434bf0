//! The loop of the engine's thread.

use crate::engine::batch::Batch;
use crate::engine::pool::{Entry, Pool};
use crate::engine::stats::DeathWatch;
use crate::engine::{EngineError, EngineStats};
use crate::nets::Denoiser;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

/// Runs until the inbox is closed and everything in it is answered.
pub(super) fn run(denoiser: &mut dyn Denoiser, mut pool: Pool, inbox: &Receiver<Entry>, stats: &EngineStats) {
    let _watch = DeathWatch(stats);
    while receive(&mut pool, inbox) {
        pool.drop_cancelled();
        pool.start_waiting();
        // A plan without steps is finished as it starts.
        pool.collect_finished();
        if let Some(batch) = Batch::next(&mut pool) {
            step(denoiser, &mut pool, &batch, stats);
        }
    }
}

/// Takes in what has arrived; waits for it when there is nothing else to do. `false` when the work is over.
fn receive(pool: &mut Pool, inbox: &Receiver<Entry>) -> bool {
    if pool.is_idle() {
        match inbox.recv() {
            Ok(entry) => pool.push(entry),
            Err(_) => return false,
        }
    }
    loop {
        match inbox.try_recv() {
            Ok(entry) => pool.push(entry),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
        }
    }
}

fn step(denoiser: &mut dyn Denoiser, pool: &mut Pool, batch: &Batch, stats: &EngineStats) {
    let start = Instant::now();
    let outcome = call(denoiser, batch);
    stats.record_call(batch.subnet, batch.rows(), start.elapsed());
    match outcome {
        Ok(denoised) => {
            batch.advance(pool, &denoised);
            pool.collect_finished();
        }
        Err(problem) => {
            tracing::error!(subnet = %stats.subnets()[batch.subnet].0, rows = batch.rows(), %problem, "a batch failed");
            pool.fail(&batch.slots, &EngineError::Denoiser(problem));
        }
    }
}

/// The denoiser's answer, checked: a device fault, a panic or values that are no numbers fail the batch and nothing else.
fn call(denoiser: &mut dyn Denoiser, batch: &Batch) -> Result<Vec<f32>, String> {
    let denoise = || denoiser.denoise(batch.subnet, &batch.x, &batch.sigma, &batch.class);
    let denoised = match std::panic::catch_unwind(AssertUnwindSafe(denoise)) {
        Ok(answer) => answer.map_err(|e| e.to_string())?,
        Err(payload) => return Err(format!("it panicked: {}", message(&*payload))),
    };
    if denoised.len() != batch.x.len() {
        return Err(format!("it returned {} values for {}", denoised.len(), batch.x.len()));
    }
    if !denoised.iter().all(|value| value.is_finite()) {
        return Err("it returned values that are not finite".to_owned());
    }
    Ok(denoised)
}

fn message(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

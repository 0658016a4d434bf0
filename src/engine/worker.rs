//! The loop of the engine's thread.

use crate::engine::handle::{Shared, lock};
use crate::engine::pool::{Batch, Entry, Pool};
use crate::engine::stats::DeathWatch;
use crate::engine::{EngineError, EngineStats};
use crate::nets::Denoiser;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

/// Runs until the inbox is closed and everything in it is answered.
pub(super) fn run(denoiser: &mut dyn Denoiser, mut pool: Pool, inbox: &Receiver<Entry>, shared: &Shared) {
    let stats = shared.stats();
    let _watch = DeathWatch(stats);
    loop {
        receive(&mut pool, inbox);
        for gone in pool.drop_cancelled() {
            lock(&shared.policy).leave(gone);
        }
        let turn = lock(&shared.policy).next(shared.now());
        let Some(turn) = turn else {
            // Nothing to do until something comes.
            match inbox.recv() {
                Ok(entry) => pool.push(entry),
                Err(_) => return,
            }
            continue;
        };
        // The policy may speak of a request that came since: it was sent before the policy was told.
        receive(&mut pool, inbox);
        let batch = pool.batch(&turn);
        let start = Instant::now();
        let outcome = if batch.members.is_empty() { Ok(Vec::new()) } else { call(denoiser, &batch, stats) };
        let took = start.elapsed();
        match outcome {
            Ok(denoised) => {
                pool.advance(&batch, &denoised);
                lock(&shared.policy).ran(&turn, took, shared.now());
            }
            Err(problem) => {
                let subnet = &stats.subnets()[batch.subnet].0;
                tracing::error!(%subnet, rows = batch.sigma.len(), %problem, "a batch failed");
                let failed = pool.fail(&batch.members, &EngineError::Denoiser(problem));
                let mut policy = lock(&shared.policy);
                failed.into_iter().for_each(|request| policy.leave(request));
            }
        }
    }
}

/// Takes in what has arrived.
fn receive(pool: &mut Pool, inbox: &Receiver<Entry>) {
    loop {
        match inbox.try_recv() {
            Ok(entry) => pool.push(entry),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
        }
    }
}

/// The denoiser's answer, checked: a device fault, a panic or values that are no numbers fail the batch and nothing else.
fn call(denoiser: &mut dyn Denoiser, batch: &Batch, stats: &EngineStats) -> Result<Vec<f32>, String> {
    let mut denoise = || denoiser.denoise(batch.subnet, &batch.x, &batch.sigma, &batch.class);
    let start = Instant::now();
    stats.begin_call();
    let answer = std::panic::catch_unwind(AssertUnwindSafe(&mut denoise));
    stats.record_call(batch.subnet, batch.sigma.len(), start.elapsed());
    stats.set_activation_bytes(denoiser.activation_bytes());
    let denoised = match answer {
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

//! The loop of the engine's thread.

use crate::engine::EngineError;
use crate::engine::device::Device;
use crate::engine::pool::{Entry, Pool};
use crate::engine::shared::{Shared, lock};
use crate::engine::stats::DeathWatch;
use crate::nets::Move;
use std::sync::mpsc::{Receiver, TryRecvError};

/// Runs until the inbox is closed and everything in it is answered.
///
/// # Panics
/// When the device is lost: the engine is dead then, which liveness tells, and a new process may get the device back.
pub(super) fn run(device: &mut Device, mut pool: Pool, inbox: &Receiver<Entry>, shared: &Shared) {
    let stats = shared.stats();
    let _watch = DeathWatch(stats);
    loop {
        receive(&mut pool, inbox);
        for gone in pool.drop_cancelled(device) {
            lock(&shared.policy).leave(gone);
        }
        let turn = {
            let mut policy = shared.policy();
            let turn = policy.next(shared.now());
            if turn.is_none() {
                shared.turns.rest(shared.seat);
            }
            turn
        };
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
        for failed in pool.begin(&turn, device) {
            lock(&shared.policy).leave(failed);
        }
        let batch = pool.batch(&turn);
        if batch.members.is_empty() {
            // All of them have failed to begin: the policy knows, and nothing ran that it could learn from.
            continue;
        }
        let (outcome, took) = device.step(batch.subnet, &batch.moves);
        let failed = match outcome {
            Ok(()) => {
                let failed = pool.advance(&batch, device);
                lock(&shared.policy).ran(&turn, took, shared.now());
                failed
            }
            Err(problem) => {
                let (subnet, rows) =
                    (&stats.subnets()[batch.subnet].0, batch.moves.iter().map(Move::rows).sum::<usize>());
                tracing::error!(%subnet, rows, %problem, "a batch failed");
                let members = batch.members.iter().map(|member| member.request);
                pool.fail(members, &EngineError::Denoiser(problem), device)
            }
        };
        let mut policy = lock(&shared.policy);
        failed.into_iter().for_each(|request| policy.leave(request));
        drop(policy);
        assert!(!device.is_lost(), "the device is lost");
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

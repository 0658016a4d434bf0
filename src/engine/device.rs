//! The engine's hands on its sampler: calls wait for their turn; faults and panics become sentences, which fail the requests they
//! hit and nothing else.

use crate::engine::EngineStats;
use crate::engine::turns::Seat;
use crate::nets::{Begin, Move, Sampler, Slot};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Device {
    sampler: Box<dyn Sampler>,
    stats: Arc<EngineStats>,
    seat: Seat,
    /// Whether there is a network between pictures and what is denoised: else coding is only to copy, and takes no turn.
    is_coded: bool,
}

impl Device {
    pub fn new(sampler: Box<dyn Sampler>, stats: Arc<EngineStats>, seat: Seat) -> Self {
        let is_coded = sampler.about().canvases.iter().any(|canvas| canvas.picture != canvas.state);
        Self { sampler, stats, seat, is_coded }
    }

    pub fn encode(&mut self, canvas: usize, picture: &[f32]) -> Result<Vec<f32>, String> {
        let _turn = self.is_coded.then(|| self.seat.turn());
        guarded(|| self.sampler.encode(canvas, picture))
    }

    pub fn begin(&mut self, begin: &Begin) -> Result<Slot, String> {
        guarded(|| self.sampler.begin(begin))
    }

    /// A step, counted and timed: how long it took without the wait for its turn.
    pub fn step(&mut self, subnet: usize, moves: &[Move]) -> (Result<(), String>, Duration) {
        let turn = self.seat.turn();
        self.stats.begin_call();
        let outcome = guarded(|| self.sampler.step(subnet, moves));
        let took = turn.end();
        self.stats.record_call(subnet, moves.iter().map(Move::rows).sum(), took);
        self.stats.set_activation_bytes(self.sampler.activation_bytes());
        (outcome, took)
    }

    pub fn pixels(&mut self, slot: Slot, decoder: usize) -> Result<Vec<u8>, String> {
        let _turn = self.is_coded.then(|| self.seat.turn());
        guarded(|| self.sampler.pixels(slot, decoder))
    }

    pub fn estimate(&mut self, slot: Slot) -> Result<Vec<u8>, String> {
        guarded(|| self.sampler.estimate(slot))
    }

    pub fn end(&mut self, slot: Slot) {
        self.sampler.end(slot);
    }

    /// Whether nothing will work any more.
    pub fn is_lost(&self) -> bool {
        self.sampler.is_lost()
    }
}

fn guarded<T>(work: impl FnOnce() -> crate::Result<T>) -> Result<T, String> {
    match std::panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(payload) => Err(format!("it panicked: {}", message(&*payload))),
    }
}

fn message(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

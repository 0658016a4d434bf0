//! The engine's hands on its sampler: faults and panics become sentences, which fail the requests they hit and nothing
//! else.

use crate::engine::EngineStats;
use crate::nets::{Begin, Move, Sampler, Slot};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

pub(super) struct Device {
    sampler: Box<dyn Sampler>,
    stats: Arc<EngineStats>,
}

impl Device {
    pub fn new(sampler: Box<dyn Sampler>, stats: Arc<EngineStats>) -> Self {
        Self { sampler, stats }
    }

    pub fn encode(&mut self, canvas: usize, picture: &[f32]) -> Result<Vec<f32>, String> {
        guarded(|| self.sampler.encode(canvas, picture))
    }

    pub fn begin(&mut self, begin: &Begin) -> Result<Slot, String> {
        guarded(|| self.sampler.begin(begin))
    }

    /// A step, counted and timed.
    pub fn step(&mut self, subnet: usize, moves: &[Move]) -> Result<(), String> {
        let start = Instant::now();
        self.stats.begin_call();
        let outcome = guarded(|| self.sampler.step(subnet, moves));
        self.stats.record_call(subnet, moves.iter().map(Move::rows).sum(), start.elapsed());
        self.stats.set_activation_bytes(self.sampler.activation_bytes());
        outcome
    }

    pub fn pixels(&mut self, slot: Slot, decoder: usize) -> Result<Vec<u8>, String> {
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

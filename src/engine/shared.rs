//! What the callers of an engine and its thread both reach.

use crate::engine::EngineStats;
use crate::engine::policy::Policy;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the callers and the thread both reach.
pub(super) struct Shared {
    pub policy: Mutex<Box<dyn Policy>>,
    stats: Arc<EngineStats>,
    start: Instant,
}

impl Shared {
    pub fn new(policy: Box<dyn Policy>, stats: Arc<EngineStats>) -> Self {
        Self { policy: Mutex::new(policy), stats, start: Instant::now() }
    }

    /// Time since the engine's start: the clock of the policy.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// A moment by that clock; the start for any before it.
    pub fn at(&self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.start)
    }

    pub fn stats(&self) -> &Arc<EngineStats> {
        &self.stats
    }
}

/// What these mutexes guard is replaced whole, so it is sound even if a holder panicked.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

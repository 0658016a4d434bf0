//! What the callers of an engine and its thread both reach.

use crate::engine::EngineStats;
use crate::engine::policy::Policy;
use crate::engine::turns::{SeatId, Turns};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the callers and the thread both reach.
#[derive(Debug)]
pub(super) struct Shared {
    pub policy: Mutex<Box<dyn Policy>>,
    pub turns: Arc<Turns>,
    pub seat: SeatId,
    stats: Arc<EngineStats>,
    start: Instant,
}

impl Shared {
    pub fn new(policy: Box<dyn Policy>, stats: Arc<EngineStats>, turns: Arc<Turns>, seat: SeatId) -> Self {
        Self { policy: Mutex::new(policy), turns, seat, stats, start: Instant::now() }
    }

    /// The policy, which knows with whom the device is shared now.
    pub fn policy(&self) -> MutexGuard<'_, Box<dyn Policy>> {
        let mut policy = lock(&self.policy);
        policy.meet(self.turns.company(self.seat));
        policy
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

//! How loaded the server is, for balancers.

use crate::engine::Turns;
use crate::server::AppState;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Shorter intervals than this say more of chance than of load.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a balancer weighs a server by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// The share of their time that the devices compute: 0 idle, 1 busy throughout.
    pub utilization: f64,
    /// How far the images fall short of the quality that was asked: 0 is not at all.
    pub quality_deficit: f64,
    /// Requests for images answered in a second.
    pub rps: f64,
}

impl AppState {
    /// The load over the last interval: since the reading before this one, a second at least.
    pub fn load(&self) -> Load {
        Load { quality_deficit: self.metrics.quality_deficit(), ..self.meter.read(self.room.devices()) }
    }
}

/// Measures [`Load`] between two readings.
#[derive(Debug)]
pub(super) struct LoadMeter {
    answered: AtomicU64,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    busy: Duration,
    answered: u64,
    load: Load,
}

impl LoadMeter {
    pub fn new() -> Self {
        let window = Window { since: Instant::now(), busy: Duration::ZERO, answered: 0, load: Load::default() };
        Self { answered: AtomicU64::new(0), window: Mutex::new(window) }
    }

    /// Counts a request for images.
    pub fn count(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    /// All but the quality deficit.
    fn read(&self, devices: &[Arc<Turns>]) -> Load {
        // Replaced field by field, but sound at every moment.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = window.since.elapsed();
        if elapsed >= INTERVAL {
            let busy: Duration = devices.iter().map(|device| device.used()).sum();
            let answered = self.answered.load(Relaxed);
            let share = |part: f64| part / elapsed.as_secs_f64();
            window.load = Load {
                // A turn counts when it ends, so that a long one may fill more than the interval.
                utilization: (share(busy.saturating_sub(window.busy).as_secs_f64()) / devices.len() as f64).min(1.0),
                quality_deficit: 0.0,
                rps: share((answered - window.answered) as f64),
            };
            (window.since, window.busy, window.answered) = (Instant::now(), busy, answered);
        }
        window.load
    }
}

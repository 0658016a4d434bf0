//! What the engine has done and is doing, as atomics: written by its thread, read at scrape time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Counters and gauges of one engine.
#[derive(Debug)]
pub struct EngineStats {
    subnets: Vec<(String, SubnetStats)>,
    active: AtomicUsize,
    finished: AtomicU64,
    died: AtomicBool,
}

/// What one subnet has done since the start.
#[derive(Debug, Default)]
pub struct SubnetStats {
    calls: AtomicU64,
    samples: AtomicU64,
    busy_ns: AtomicU64,
}

impl SubnetStats {
    /// Batches.
    pub fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    /// Samples in all batches together; an image under guidance counts twice.
    pub fn samples(&self) -> u64 {
        self.samples.load(Relaxed)
    }

    /// Time in the denoiser.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_ns.load(Relaxed))
    }
}

impl EngineStats {
    pub(super) fn new(subnets: impl IntoIterator<Item = String>) -> Self {
        Self {
            subnets: subnets.into_iter().map(|name| (name, SubnetStats::default())).collect(),
            active: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
            died: AtomicBool::new(false),
        }
    }

    /// Each subnet's name and what it has done, from the narrowest to the widest.
    pub fn subnets(&self) -> &[(String, SubnetStats)] {
        &self.subnets
    }

    /// Images between their first step and their last.
    pub fn active(&self) -> usize {
        self.active.load(Relaxed)
    }

    /// Images drawn since the start.
    pub fn finished(&self) -> u64 {
        self.finished.load(Relaxed)
    }

    /// Whether the thread has panicked. It does not come back.
    pub fn died(&self) -> bool {
        self.died.load(Relaxed)
    }

    /// Time that an image has taken on average, as a share of the device's; `None` before the first image.
    pub fn seconds_per_image(&self) -> Option<f64> {
        let busy: Duration = self.subnets.iter().map(|(_, stats)| stats.busy()).sum();
        match self.finished() {
            0 => None,
            images => Some(busy.as_secs_f64() / images as f64),
        }
    }

    pub(super) fn record_call(&self, subnet: usize, samples: usize, took: Duration) {
        let stats = &self.subnets[subnet].1;
        stats.calls.fetch_add(1, Relaxed);
        stats.samples.fetch_add(samples as u64, Relaxed);
        stats.busy_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn record_finished(&self, images: usize) {
        self.finished.fetch_add(images as u64, Relaxed);
    }

    pub(super) fn set_active(&self, images: usize) {
        self.active.store(images, Relaxed);
    }
}

/// Notes the death of the thread that holds it, before the thread lets go of its requests.
pub(super) struct DeathWatch<'a>(pub &'a EngineStats);

impl Drop for DeathWatch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.died.store(true, Relaxed);
        }
    }
}

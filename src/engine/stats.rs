//! What the engine has done and is doing: written by its thread, read at scrape time.

use prometheus::{Histogram, HistogramOpts, exponential_buckets};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Counters and gauges of one engine.
#[derive(Debug)]
pub struct EngineStats {
    subnets: Vec<(String, SubnetStats)>,
    active: AtomicUsize,
    activation_bytes: AtomicUsize,
    finished: AtomicU64,
    died: AtomicBool,
    epoch: Instant,
    /// When the call under way began, in ns since `epoch`; `IDLE` between calls.
    call_began_ns: AtomicI64,
}

const IDLE: i64 = i64::MIN;

/// What one subnet has done since the start.
#[derive(Debug)]
pub struct SubnetStats {
    calls: AtomicU64,
    samples: AtomicU64,
    busy_ns: AtomicU64,
    call_seconds: Histogram,
    batch: Histogram,
}

impl SubnetStats {
    fn new() -> Self {
        // Static names and ascending edges: nothing that could be refused.
        let histogram = |name: &str, help: &str, start, factor, count| {
            let edges = exponential_buckets(start, factor, count).expect("ascending edges");
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(edges)).expect("a valid name")
        };
        Self {
            calls: AtomicU64::new(0),
            samples: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
            call_seconds: histogram("call_seconds", "Time of a call.", 0.0002, 1.6, 20),
            batch: histogram("batch", "Samples in a call.", 1.0, 2.0, 8),
        }
    }

    /// The distribution of the calls' times, in seconds.
    pub fn call_seconds(&self) -> &Histogram {
        &self.call_seconds
    }

    /// The distribution of the calls' samples.
    pub fn batch(&self) -> &Histogram {
        &self.batch
    }

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
            subnets: subnets.into_iter().map(|name| (name, SubnetStats::new())).collect(),
            active: AtomicUsize::new(0),
            activation_bytes: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
            died: AtomicBool::new(false),
            epoch: Instant::now(),
            call_began_ns: AtomicI64::new(IDLE),
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

    /// Memory in the denoiser's buffers of activations.
    pub fn activation_bytes(&self) -> usize {
        self.activation_bytes.load(Relaxed)
    }

    /// Images drawn since the start.
    pub fn finished(&self) -> u64 {
        self.finished.load(Relaxed)
    }

    /// Whether the thread has panicked. It does not come back.
    pub fn died(&self) -> bool {
        self.died.load(Relaxed)
    }

    /// How long the call of the denoiser that is under way has taken; `None` between calls.
    pub fn stalled_for(&self) -> Option<Duration> {
        let began = self.call_began_ns.load(Relaxed);
        let stalled = || self.now_ns().saturating_sub(began).max(0);
        (began != IDLE).then(|| Duration::from_nanos(stalled() as u64))
    }

    fn now_ns(&self) -> i64 {
        i64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }

    /// As if the call under way had begun so much earlier.
    #[cfg(test)]
    pub(crate) fn backdate_call(&self, by: Duration) {
        self.call_began_ns.fetch_sub(by.as_nanos() as i64, Relaxed);
    }

    pub(super) fn begin_call(&self) {
        self.call_began_ns.store(self.now_ns(), Relaxed);
    }

    /// Ends what [`Self::begin_call`] began.
    pub(super) fn record_call(&self, subnet: usize, samples: usize, took: Duration) {
        self.call_began_ns.store(IDLE, Relaxed);
        let stats = &self.subnets[subnet].1;
        stats.calls.fetch_add(1, Relaxed);
        stats.samples.fetch_add(samples as u64, Relaxed);
        stats.call_seconds.observe(took.as_secs_f64());
        stats.batch.observe(samples as f64);
        stats.busy_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn record_finished(&self, images: usize) {
        self.finished.fetch_add(images as u64, Relaxed);
    }

    pub(super) fn set_activation_bytes(&self, bytes: usize) {
        self.activation_bytes.store(bytes, Relaxed);
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
